"""Table 3: other features in place of the h-space, on SOTS, Dense-Haze and NH-HAZE (PSNR).

    python -m difflid_jax.train --config=configs/table3.py:dense_haze,layer_e --workdir=runs/table3/... \\
        (data and prior as in configs/dense_haze.py)

The argument after the colon is a data set (sots, dense_haze, nh_haze) and a row of the table. The paper names
no layers. Ours are on the grid of the h-space, 1/32 of the image: the U-Net's last encoder block and its
second decoder block (which needs a prior converted with its decoder, --part all), the last pooling of VGG-16
and the last block of ResNet-50. The classifiers have no timestep: both maps are equal. VGG-16 needs no prior
(a package contains its weights); ResNet-50 needs one from `python -m convert_weights.perceptual`.

Expected, from the paper; not reproduced here yet. Each row costs about as much as the data set's own config.

| row | SOTS | Dense-Haze | NH-HAZE |
|---|---:|---:|---:|
| layer_e | 36.52 | 13.86 | 17.53 |
| layer_d | 39.10 | 16.44 | 19.88 |
| vgg16 | 27.83 | 12.87 | 16.23 |
| resnet50 | 25.49 | 12.52 | 15.62 |
| h_space | 40.33 | 16.97 | 20.29 |
"""

from difflid_jax.config.files import load_config

SETS = ("sots", "dense_haze", "nh_haze")
ROWS = {
    "layer_e": ("h_space", "encoder:17"),
    "layer_d": ("h_space", "decoder:1"),
    "vgg16": ("vgg16", "middle"),
    "resnet50": ("resnet50", "middle"),
    "h_space": ("h_space", "middle"),
}


def get_config(which: str = "sots,h_space"):
    """The data set's own config with the features of a row."""
    dataset, _, row = which.partition(",")
    if dataset not in SETS or row not in ROWS:
        raise ValueError(f"table3.py:{which}: expected one of {SETS}, a comma, and one of {tuple(ROWS)}")
    config = load_config(dataset)
    config.features.kind, config.features.layer = ROWS[row]
    return config
