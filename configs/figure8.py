"""Figure 8: the choice of t₁ and t₂, on SOTS (PSNR).

    python -m difflid_jax.train --config=configs/figure8.py:0,300 --workdir=runs/figure8/0_300 \\
        (data and prior as in configs/sots.py)

The two numbers after the colon are t₁ and t₂, from 0 to 999; the paper's T = 1000 is 999. The paper varies
one and keeps the other at its best value: t₁ = 0 with t₂ of 100, 300, 500, 600, 1000; t₂ = 500 with other t₁.

Expected, from the paper: t₂ = 500 is 1.99 dB better than 100 and 2.07 dB better than 600, t₁ = 0 is best;
not reproduced here yet. Each point costs as much as configs/sots.py.
"""

from difflid_jax.config.files import load_config


def get_config(which: str = "0,500"):
    """configs/sots.py with other timesteps."""
    try:
        first, second = (int(number) for number in which.split(","))
    except ValueError as error:
        raise ValueError(f"figure8.py:{which}: expected two timesteps separated by a comma") from error
    config = load_config("sots")
    config.features.times = (first, second)
    return config
