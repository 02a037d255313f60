"""Make weights an asset that ships with the package: float16, without the paths of this machine.

    python scripts/ship.py --weights=runs/prior/weights --name=photos64

Writes difflid_jax/assets/NAME/model.safetensors, found from then on by its name (`--config.prior=NAME`,
`--weights=NAME`); the model card beside it is written by hand. What the metadata's config says of files is
cut to their names. A restorer must stand on a prior that ships: train it with --config.prior=NAME, since it
names the hash of the very file.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from absl import flags

from difflid_jax.cli import UsageError, run
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
    said = dict(weights.metadata)
    if kind == "restorer" and said.get("prior") not in store.shipped():
        raise UsageError(
            f"{weights.path}: its prior {said.get('prior')!r} is none of those that ship "
            f"({', '.join(store.shipped())}); ship the prior, and train with --config.prior=NAME"
        )
    if "config" in said:
        said["config"] = without_paths(said["config"])
    path = store.save(
        store.ASSETS / options.name, kind, weights.tensors, weights.architecture, dtype=np.float16, **said
    )
    print(f"{path}: {kind}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.DEFINE_string("weights", "", "Weights folder that a training run wrote.")
    flags.DEFINE_string("name", "", "Name of the asset.")
    run(main)
