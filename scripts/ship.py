"""Copies weights into the package's assets: as float16, and without the paths of this machine.

    python scripts/ship.py --weights=runs/prior/weights --name=photos64

Writes difflid_jax/assets/NAME/model.safetensors, found by `--config.prior=NAME` and `--weights=NAME`; the
model card next to it is written by hand. Paths in the metadata's config are cut to file names. A restorer's
prior must ship, too: train it with --config.prior=NAME, because it stores the hash of that file.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from absl import flags

from difflid_jax.cli import UsageError, definer, run
from difflid_jax.weights import store


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with 'a/b.tar,a/b.tar,c/d' as '2 × b.tar, d' wherever it names files."""

    def names(text: str) -> str:
        counted = Counter(PurePath(path).name for path in text.split(","))
        return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counted.items())

    paths = ("train", "validation", "test", "cache")
    data = {key: names(value) if key in paths else value for key, value in config["data"].items()}
    return {**config, "data": data, "init": names(config.get("init", ""))}


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not options.weights or not options.name:
        raise UsageError("give --weights=FOLDER and --name=NAME, see --help")
    kind = store.read_metadata(options.weights)["kind"]
    weights = store.read(options.weights, kind)
    metadata = dict(weights.metadata)
    if kind == "restorer" and metadata.get("prior") not in store.shipped():
        raise UsageError(
            f"{weights.path}: expected a shipped prior ({', '.join(store.shipped())}), found "
            f"{metadata.get('prior')!r}; ship the prior and train with --config.prior=NAME"
        )
    if "config" in metadata:
        metadata["config"] = without_paths(metadata["config"])
    path = store.save(
        store.ASSETS / options.name, kind, weights.tensors, weights.architecture, dtype=np.float16, **metadata
    )
    print(f"{path}: {kind}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    define = definer()
    define("path", "weights", "", "Weights folder written by a training run.")
    define("string", "name", "", "Name of the asset.")
    run(main)
