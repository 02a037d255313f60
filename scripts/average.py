"""Averages the weights of a run with those that it started from.

    python scripts/average.py --before=runs/haze-long/weights --after=runs/haze-last/weights --share=0.5 \
        --output=runs/haze/weights

Writes (1 − share) · before + share · after, with the metadata of `after`. Fine-tuned weights are better on
the new images and may be worse on others; weights between the two ends can be good at both (Wortsman et al.,
Robust fine-tuning of zero-shot models, CVPR 2022). Choose the share by scores on held-out images.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags

from difflid_jax.cli import UsageError, define_path, refuse_existing, run
from difflid_jax.weights import store


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not (options.before and options.after and options.output):
        raise UsageError("give --before=FOLDER, --after=FOLDER and --output=FOLDER, see --help")
    refuse_existing(options.output, overwrite=False)
    kind = store.read_metadata(options.after)["kind"]
    before, after = (store.read(folder, kind) for folder in (options.before, options.after))
    for what, old, new in (
        ("architecture", before.architecture, after.architecture),
        ("prior_sha256", before.metadata.get("prior_sha256"), after.metadata.get("prior_sha256")),
    ):
        if old != new:
            raise UsageError(f"{before.path}, {after.path}: expected one {what}, found {old} and {new}")

    def average(name: str) -> np.ndarray:
        old, new = (np.asarray(x.tensors[name], np.float32) for x in (before, after))
        return (1 - options.share) * old + options.share * new

    tensors = {name: average(name) for name in after.tensors}
    # The scores of `after` do not hold for the average.
    metadata = {
        **after.metadata,
        "scores": {},
        "averaged": {"before_sha256": before.sha256, "share": options.share},
    }
    path = store.save(options.output, kind, tensors, after.architecture, **metadata)
    print(f"{path}: {1 - options.share:.3g} × {before.path} + {options.share:.3g} × {after.path}")


if __name__ == "__main__":
    define_path("before", "", "Weights that the run started from.")
    define_path("after", "", "Weights written by the run.")
    flags.DEFINE_float("share", 0.5, "Weight of --after, from 0 to 1.", lower_bound=0.0, upper_bound=1.0)
    define_path("output", "", "Folder for the averaged weights.")
    run(main)
