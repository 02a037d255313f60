"""Train a diffusion prior on images, or resume an interrupted run.

    python -m difflid_jax.pretrain --config=prior_64 \
        --config.data.train=photos/ --config.data.validation=others/

Runs, resumes and ends as `train` does. Each evaluation draws samples into sheets/ and measures the loss on
the images of --config.data.validation, overall and per hundred timesteps. --config.init=WEIGHTS
starts from other weights of the same architecture. At the end, weights/ holds the model, averaged if the
config asks for it: use it as --config.prior of `train`, or draw from it with `sample`.
"""

from collections.abc import Sequence

from absl import flags

from difflid_jax.cli import run
from difflid_jax.config.launch import define_flags, launch


def main(argv: Sequence[str]) -> int:
    # Imported here so that --help does not wait for JAX to load.
    from difflid_jax.config.experiment import resolve_prior
    from difflid_jax.tasks import prior

    return launch("pretrain", argv, flags.FLAGS, resolve_prior, prior.train)


if __name__ == "__main__":
    run(main, define_flags)
