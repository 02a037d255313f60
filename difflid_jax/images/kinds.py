"""The kinds of picture that people have in Python, taken apart into pixels and alpha, and put together again.

PIL images: 1, L, LA, P, PA, RGB, RGBA, I;16. NumPy and JAX arrays: uint8, uint16, or floats in [0,1], of
shape (H,W), (H,W,C) or (N,H,W,C) with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA). Alpha is not
touched.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

# Modes whose pixels have to be those of another one to be restored.
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}
_FLOAT_SLACK = 0.01

Pixels = np.ndarray


def through(image: Any, restore: Callable[[Pixels], Pixels]) -> Any:
    """`image` with its pixels restored, as the same kind, size and bit depth.

    `restore` gets pixels (H,W) or (H,W,3), uint8, uint16 or float32 in [0,1], and returns the same. A PIL
    image of mode 1 comes back as L, of mode P as RGB (or RGBA): restored colours are new.
    Raises TypeError for another kind of object, ValueError for a mode, shape, type or range that is none of
    the above.
    """
    if isinstance(image, Image.Image):
        return _through_pil(image, restore)
    if not isinstance(image, np.ndarray | jax.Array):
        raise TypeError(
            f"expected a PIL image, a NumPy or a JAX array, found {type(image).__name__}; "
            "read files with PIL.Image.open, or use difflid_jax.restore"
        )
    array = np.asarray(image)
    _check(array)
    if array.ndim == 4:
        restored = np.stack([_samples(item, restore) for item in array]) if len(array) else array
    else:
        restored = _samples(array, restore)
    return jax.device_put(restored, image.sharding) if isinstance(image, jax.Array) else restored


def _through_pil(image: Image.Image, restore: Callable[[Pixels], Pixels]) -> Image.Image:
    mode = _CONVERTED.get(image.mode, image.mode)
    if "transparency" in image.info:
        mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
    if mode not in ("L", "LA", "RGB", "RGBA") and not mode.startswith("I;16"):
        raise ValueError(
            f"a PIL image of mode {image.mode}: expected 1, L, LA, P, PA, RGB, RGBA or I;16; "
            "convert it first, for instance with image.convert('RGB')"
        )
    if 0 in image.size:
        raise ValueError(f"a PIL image of zero size ({image.width}×{image.height})")
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    restored = Image.fromarray(_samples(pixels, restore))
    restored.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return restored


def _samples(samples: np.ndarray, restore: Callable[[Pixels], Pixels]) -> np.ndarray:
    """(H,W) or (H,W,C) of any type → the same, restored."""
    colours = 3 if samples.ndim == 3 and samples.shape[2] >= 3 else 1
    pixels = samples if samples.ndim == 2 else samples[..., :colours] if colours == 3 else samples[..., 0]
    restored = restore(pixels if pixels.dtype.kind == "u" else pixels.astype(np.float32))
    restored = restored.astype(samples.dtype, copy=False)
    if samples.ndim == 2:
        return restored
    restored = restored.reshape(*samples.shape[:2], colours)
    return np.concatenate([restored, samples[..., colours:]], axis=-1)


def _check(array: np.ndarray) -> None:
    shape = array.shape
    if array.ndim not in (2, 3, 4) or (array.ndim > 2 and shape[-1] not in (1, 2, 3, 4)):
        raise ValueError(
            f"expected an array (H,W), (H,W,C) or (N,H,W,C) with 1 to 4 channels last, found shape {shape}"
        )
    if 0 in shape[1 if array.ndim == 4 else 0 :]:
        raise ValueError(f"a picture of zero size: shape {shape}")
    if array.dtype in (np.uint8, np.uint16):
        return
    if not jax.dtypes.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected uint8, uint16 or floats in [0,1], found {array.dtype}")
    if not array.size:
        return
    low, high = float(array.min()), float(array.max())
    # Written so that NaN fails.
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):
        raise ValueError(
            f"expected floats in [0,1], found {low:.4g} to {high:.4g}; "
            "divide by the largest value that the picture could have (255 for 8 bit)"
        )
