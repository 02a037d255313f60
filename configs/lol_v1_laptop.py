"""LOL-v1 (Table 4, left) at a size that two CPU cores can train: DiffLI²D+ on the included prior.

    python -m difflid_jax.train --config=configs/lol_v1_laptop.py:full --workdir=runs/lol-full \\
        --config.data.train=LOL --config.data.test=LOL

LOL contains `our485` and `eval15`. The word after the colon is the arm: `full`, or one of two controls,
`random`, whose frozen U-Net has random weights, and `baseline`, with self-attention of the same size in place
of CIM and HAE. 35 of the 485 training pairs, drawn by the seed, are held out to choose the weights; the 15
test pairs are scored once, at the end.

Schedule: 4,000 steps of 16 crops of 96 px, from images resized to between a quarter and their full size, each
with the features of its whole image; 76 minutes on one CPU core.

Measured, `full`, seed 0 (docs/results.md; ships as `lowlight`): 21.98 dB / .764 on eval15 (the dark
input: 7.77 dB / .195), and 21.71 dB / .787 on the 35 validation pairs. The paper reports 23.30 dB / .849 for
its full-size network. `random`: 19.76 dB / .754, and 21.82 dB / .784 on the validation pairs. `baseline`:
21.29 dB / .768, and 22.48 dB / .799 on the validation pairs.
"""

from difflid_jax.config import schema
from difflid_jax.weights.schema import check_choice

ARMS = ("full", "random", "baseline")


def get_config(arm: str = "full"):
    """The recipe with the features of an arm; the data are given on the command line."""
    check_choice("lol_v1_laptop.py", arm, ARMS)
    config = schema.default()
    config.prior = "photos64"
    config.frequency_weight = 0.1
    config.data.dataset = "lol_v1"
    config.data.holdout = 35
    config.data.crop = 96
    config.data.view = True
    config.data.scale = (96 / 400, 1.0)
    config.data.batch_size = 16
    config.features.side = 64
    config.features.times = (0, 300)
    config.features.random = arm == "random"
    config.network.kind = "plus"
    config.network.preset = ""
    config.network.widths = (24, 48, 96)
    config.network.branches = 2
    config.network.patch = 2
    config.network.variant = "baseline" if arm == "baseline" else ""
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.optimizer.ema = 0.998
    config.optimizer.clip = 0.5
    config.training.steps = 4000
    config.training.evaluate_every = 1000
    config.training.checkpoint_every = 200
    config.evaluation.lpips = False
    return config
