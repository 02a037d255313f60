"""LOL-v1 (Table 4, left) at a size that two CPU cores can train: DiffLI²D+ on the included prior.

    python -m difflid_jax.train --config=configs/lol_v1_laptop.py:full --workdir=runs/lol-full \\
        --config.data.train=LOL --config.data.test=LOL

LOL contains `our485` and `eval15`. The word after the colon is the arm: `full`, or `random`, the control,
whose frozen U-Net has random weights. 35 of the 485 training pairs, drawn by the seed, are held out to choose
the weights; the 15 test pairs are scored once, at the end.

Schedule: 3,000 steps of 16 crops of 64 px, from images resized to between a sixth and their full size, each
with the features of its whole image; 74 minutes on one CPU core.

Measured, `full`, seed 0 (docs/results.md; ships as `lowlight`): 21.55 dB / .754 on eval15 (the dark
input: 7.77 dB / .195), and 21.39 dB / .784 on the 35 validation pairs. The paper reports 23.30 dB / .849 for
its full-size network. `random`, seed 0: 18.91 dB / .720 on eval15, 21.16 dB / .757 on the 35.
"""

from difflid_jax.config import schema
from difflid_jax.weights.schema import check_choice

ARMS = ("full", "random")


def get_config(arm: str = "full"):
    """The recipe with the features of an arm; the data are given on the command line."""
    check_choice("lol_v1_laptop.py", arm, ARMS)
    config = schema.default()
    config.prior = "photos64"
    config.data.dataset = "lol_v1"
    config.data.holdout = 35
    config.data.crop = 64
    config.data.view = True
    config.data.scale = (64 / 400, 1.0)
    config.data.batch_size = 16
    config.features.side = 64
    config.features.times = (0, 300)
    config.features.random = arm == "random"
    config.network.kind = "plus"
    config.network.branches = 2
    config.network.preset = "slim"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.995
    config.optimizer.clip = 0.5
    config.training.steps = 3000
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 200
    config.evaluation.lpips = False
    return config
