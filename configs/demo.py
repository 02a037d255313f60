"""The demo: a small DiffLI²D trained from random weights on real photographs, in five minutes on two cores.

Command: `make demo`, or

    python -m difflid_jax.train --config=configs/demo.py
    python -m difflid_jax.evaluate --workdir=runs/demo --method=identity,dark_channel_prior,difflid

Data: photographs that installed packages contain (`data/photographs.py`), five to train on and two to score,
with haze made as in RESIDE (A in 0.7 … 1, β in 0.6 … 1.8, seeded). The frozen prior is the shipped
`photos64`.

It ends after 500 steps of 4 crops, or after 5 minutes on a slower machine. Expected: PSNR at least 4 dB
above the hazy images and above the dark channel prior; the README has the figures.
"""

from difflid_jax.config import schema


def get_config():
    """A small and complete experiment that needs no path."""
    config = schema.default()
    config.prior = "photos64"
    config.data.source = "photographs"
    config.data.scale = (0.5, 1.0)
    config.data.batch_size = 4
    config.features.side = 64
    config.network.preset = "slim"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.ema = 0.99
    config.optimizer.clip = 1.0
    config.training.steps = 500
    config.training.minutes = 5.0
    config.training.evaluate_every = 0
    config.training.checkpoint_every = 100
    return config
