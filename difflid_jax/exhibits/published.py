"""The numbers that the paper reports (Tables 1–4, Sec. 5), by row and column. PSNR in dB."""

# Row → (PSNR, SSIM, LPIPS) on each data set.
TABLE_1 = {
    "dark_channel_prior": {
        "sots": (15.09, 0.765, 0.069),
        "dense_haze": (10.03, 0.386, 0.605),
        "nh_haze": (10.57, 0.520, 0.399),
    },
    "dehazenet": {
        "sots": (20.64, 0.800, 0.242),
        "dense_haze": (13.84, 0.425, 0.637),
        "nh_haze": (16.62, 0.524, 0.529),
    },
    "aod_net": {
        "sots": (19.82, 0.818, 0.099),
        "dense_haze": (13.14, 0.414, 0.599),
        "nh_haze": (15.40, 0.569, 0.495),
    },
    "full": {
        "sots": (40.33, 0.992, 0.004),
        "dense_haze": (16.97, 0.584, 0.406),
        "nh_haze": (20.29, 0.738, 0.217),
    },
}

# Row → (PSNR, SSIM, LPIPS, FID).
TABLE_4 = {
    "retinexnet": {"lol_v1": (16.77, 0.462, 0.417, 126.27), "lol_v2_real": (17.72, 0.652, 0.436, 133.91)},
    "zero_dce": {"lol_v1": (14.86, 0.562, 0.372, 87.24), "lol_v2_real": (18.06, 0.580, 0.352, 80.45)},
    "uretinex_net": {"lol_v1": (19.97, 0.828, 0.267, 62.38), "lol_v2_real": (21.13, 0.827, 0.208, 49.84)},
    "full": {"lol_v1": (23.30, 0.849, 0.136, 55.88), "lol_v2_real": (22.35, 0.874, 0.186, 42.49)},
}

# Row → PSNR.
TABLE_2 = {
    "baseline": {"sots": 36.65, "dense_haze": 14.32, "nh_haze": 18.11},
    "without_cim": {"sots": 38.21, "dense_haze": 16.04, "nh_haze": 18.64},
    "without_hae": {"sots": 38.44, "dense_haze": 16.15, "nh_haze": 19.16},
    "full": {"sots": 40.33, "dense_haze": 16.97, "nh_haze": 20.29},
}

TABLE_3 = {
    "layer_e": {"sots": 36.52, "dense_haze": 13.86, "nh_haze": 17.53},
    "layer_d": {"sots": 39.10, "dense_haze": 16.44, "nh_haze": 19.88},
    "vgg16": {"sots": 27.83, "dense_haze": 12.87, "nh_haze": 16.23},
    "resnet50": {"sots": 25.49, "dense_haze": 12.52, "nh_haze": 15.62},
    "h_space": {"sots": 40.33, "dense_haze": 16.97, "nh_haze": 20.29},
}

# (t1, t2) → PSNR on SOTS. The figure is a plot; the text gives these three points (Sec. 5.3).
FIGURE_8 = {
    "0,500": {"sots": 40.33},
    "0,100": {"sots": 38.34},
    "0,600": {"sots": 38.26},
}


_TABLES = {"table1": TABLE_1, "table2": TABLE_2, "table3": TABLE_3, "table4": TABLE_4, "figure8": FIGURE_8}


def rows(exhibit: str) -> tuple[str, ...]:
    """The rows of an exhibit that the paper gives numbers for (of Tables 1 and 4: those we have, too)."""
    return tuple(_TABLES.get(exhibit, {}))


def psnr(exhibit: str, row: str, column: str) -> float | None:
    """The published PSNR of a row and a column of an exhibit; None if the paper gives none."""
    value = _TABLES.get(exhibit, {}).get(row, {}).get(column)
    return value[0] if isinstance(value, tuple) else value
