"""A diffusion prior of our own: the architecture of the shipped `photos64`, and how to train a better one.

Command (any folders or tars of photographs; thumbnails of 64 px are used whole):

    python -m difflid_jax.pretrain --config=configs/prior_64.py --workdir=runs/prior \\
        --config.data.train=tiny-imagenet-200/train --config.data.validation=tiny-imagenet-200/val

Cost of a step, forward and backward: 2.24 GFLOP per crop of 32 px, four times that at 64 px. Two CPU cores
process 33 crops of 32 px per second, or 8 of 64 px: begin small (--config.data.crop=32) and continue from
these weights in another workdir with --config.init=runs/prior/weights. Two runs on one core each are faster
than one run on both. The shipped weights saw 48,000 crops in all (see their card).

Expected: a noise loss of about 0.05 after 1,000 steps of 32 crops of 32 px, of 0.04 after 15,000 more of
64 px. `difflid study probe` shows whether a prior is worth building on.
"""

from difflid_jax.config import schema


def get_config():
    """The shipped prior's architecture; the images are given on the command line."""
    config = schema.default_prior()
    config.training.steps = 40_000
    config.training.evaluate_every = 5_000
    return config
