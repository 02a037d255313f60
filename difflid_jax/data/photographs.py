"""Photographs from installed packages, with depth: the data of the demo.

scikit-image: astronaut, chelsea (CC0), coffee (CC0), rocket (public domain) and the Middlebury motorcycle
with its measured disparity; scikit-learn: china and flower (CC BY 2.0). The two splits are disjoint.
"""

import importlib.resources
import io
import zlib

import numpy as np
from PIL import Image
from scipy import ndimage

from difflid_jax.data.haze import plausible_depth

SPLITS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (
        ("skimage.data", "astronaut.png"),
        ("skimage.data", "chelsea.png"),
        ("skimage.data", "rocket.jpg"),
        ("sklearn.datasets.images", "china.jpg"),
        ("sklearn.datasets.images", "flower.jpg"),
    ),
    "test": (
        ("skimage.data", "motorcycle_left.png"),
        ("skimage.data", "coffee.png"),
    ),
}


def photographs(split: str, sky: float = 0.0) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, clean uint8 (H,W,3), depth float32 (H,W), 1 the scene's farthest) of split "train" or "test".

    `sky` as in `plausible_depth`.

    Raises: ValueError for another split; FileNotFoundError if a package lacks its images.
    """
    if split not in SPLITS:
        raise ValueError(f"photographs: expected split train or test, found {split!r}")
    found = []
    for package, file in SPLITS[split]:
        name = file.split(".")[0].removesuffix("_left")
        clean = np.asarray(Image.open(io.BytesIO(_read(package, file))).convert("RGB"))
        if name == "motorcycle":
            depth = motorcycle_depth()
            depth /= depth.max()
        else:
            depth = plausible_depth(clean, zlib.crc32(name.encode()), sky)
        found.append((name, clean, depth))
    return found


def motorcycle_depth() -> np.ndarray:
    """Depth in metres, float32 (500,741), of the left motorcycle image; holes get the nearest value.

    depth = baseline · focal length / (disparity + offset of the principal points), with the calibration in
    scikit-image's documentation of `stereo_motorcycle`.
    """
    with np.load(io.BytesIO(_read("skimage.data", "motorcycle_disp.npz"))) as file:
        disparity = file["arr_0"]
    holes = ~np.isfinite(disparity)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    return (0.193001 * 994.978 / (disparity[tuple(nearest)] + 31.086)).astype(np.float32)


def _read(package: str, file: str) -> bytes:
    path = importlib.resources.files(package) / file
    if not path.is_file():
        raise FileNotFoundError(f"{package}: {file} is missing; reinstall the package that carries it")
    return path.read_bytes()
