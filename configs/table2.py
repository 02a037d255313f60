"""Table 2: the network without CIM, without HAE, and without both, on SOTS, Dense-Haze and NH-HAZE (PSNR).

    python -m difflid_jax.train --config=configs/table2.py:dense_haze,without_cim --workdir=runs/table2/... \\
        (data and prior as in configs/dense_haze.py)

The argument after the colon is a data set (sots, dense_haze, nh_haze) and a row of the table. A module that
is left out is replaced by self-attention with the same number of parameters: queries from the feature map,
keys and values from the map averaged down to the grid of the h-space. The paper only says "self-attention
module that has similar number of parameter"; this reading is ours.

Expected, from the paper; not reproduced here yet. Each row costs as much as the data set's own config.

| row | SOTS | Dense-Haze | NH-HAZE |
|---|---:|---:|---:|
| baseline | 36.65 | 14.32 | 18.11 |
| without_cim | 38.21 | 16.04 | 18.64 |
| without_hae | 38.44 | 16.15 | 19.16 |
| full | 40.33 | 16.97 | 20.29 |
"""

from difflid_jax.config.files import load_config

SETS = ("sots", "dense_haze", "nh_haze")
ROWS = ("baseline", "without_cim", "without_hae", "full")


def get_config(which: str = "sots,full"):
    """The data set's own config with the modules of a row."""
    dataset, _, row = which.partition(",")
    if dataset not in SETS or row not in ROWS:
        raise ValueError(f"table2.py:{which}: expected one of {SETS}, a comma, and one of {ROWS}")
    config = load_config(dataset)
    config.network.variant = row
    return config
