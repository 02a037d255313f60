"""The kinds of image that callers pass in, split into pixels and alpha and put together again.

PIL images: 1, L, LA, P, PA, RGB, RGBA, I;16. NumPy and JAX arrays: uint8, uint16, or floats in [0,1], of
shape (H,W), (H,W,C) or (N,H,W,C) with C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA). Alpha is carried
unchanged. Everything else is refused with an error that says how to convert it.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

# Modes that are converted to another one before they are restored.
_CONVERTED = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}
_FLOAT_SLACK = 0.01
_CHANNELS = (1, 2, 3, 4)

Pixels = (
    UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w 3"]
    | UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"] | Float32[np.ndarray, "h w"]
)  # fmt: skip


def through(image: Any, restore: Callable[[Pixels], Pixels]) -> Any:
    """Restore the pixels of `image` and return the same kind, size and bit depth.

    `restore` maps pixels (H,W) or (H,W,3), uint8, uint16 or float32 in [0,1], to restored ones of the same
    shape and type. A PIL image of mode 1 is returned as L, of mode P as RGB (or RGBA), because restored
    colours are new.

    Raises: TypeError for another kind of object, ValueError for an unsupported mode, shape, type or range.
    """
    if isinstance(image, Image.Image):
        return _through_pil(image, restore)
    if not isinstance(image, np.ndarray | jax.Array):
        raise TypeError(f"expected a PIL image, a NumPy or a JAX array, found {_named(image)}")
    array = np.asarray(image)
    _check(array)
    if array.ndim == 4:
        restored = np.stack([_samples(item, restore) for item in array]) if len(array) else array
    else:
        restored = _samples(array, restore)
    return jax.device_put(restored, image.sharding) if isinstance(image, jax.Array) else restored


def _named(image: Any) -> str:
    """A name for an object of an unsupported type, and how to convert it."""
    kind = type(image)
    if isinstance(image, str | os.PathLike):
        return f"the path {os.fspath(image)!r}; open it with PIL.Image.open, or use the program restore"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"{kind.__name__}; decode them with PIL.Image.open(io.BytesIO(data))"
    if isinstance(image, list | tuple):
        return f"a {kind.__name__}; pass the images one by one, or equally large arrays with numpy.stack"
    if kind.__module__.partition(".")[0] == "torch":
        return (
            "a PyTorch tensor; pass tensor.detach().cpu().numpy(), with channels last: "
            "tensor.permute(1, 2, 0) turns (C,H,W) into (H,W,C)"
        )
    if hasattr(image, "__array__"):
        return f"{kind.__module__}.{kind.__name__}; convert it with numpy.asarray"
    return f"{kind.__name__}; read files with PIL.Image.open"


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
    """Raise ValueError, saying how to convert it, for an array of another shape, type or range."""
    _check_shape(array.shape)
    if array.dtype in (np.uint8, np.uint16):
        return
    if array.dtype == bool:
        raise ValueError(
            "expected uint8, uint16 or floats in [0,1], found bool; pass array.astype('uint8') * 255"
        )
    if array.dtype.kind in "iu":
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        kind = "uint8" if high <= 255 else "uint16"
        advice = f"pass array.astype('{kind}')" if low >= 0 and high < 1 << 16 else "scale it to one of these"
        raise ValueError(
            f"expected uint8, uint16 or floats in [0,1], found {array.dtype} from {low} to {high}; {advice}"
        )
    if not jax.dtypes.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected uint8, uint16 or floats in [0,1], found {array.dtype}")
    if array.size:
        _check_range(float(array.min()), float(array.max()))


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[-1] not in _CHANNELS):
        advice = ""
        if len(shape) == 3 and shape[0] in _CHANNELS:
            advice = "; channels come first here: pass array.transpose(1, 2, 0)"
        if len(shape) == 4 and shape[1] in _CHANNELS:
            advice = "; channels come second here: pass array.transpose(0, 2, 3, 1)"
        raise ValueError(
            "expected an array (H,W), (H,W,C) or (N,H,W,C) with 1 to 4 channels last, "
            f"found shape {shape}{advice}"
        )
    if 0 in shape[1 if len(shape) == 4 else 0 :]:
        raise ValueError(f"an image of zero size: shape {shape}")


def _check_range(low: float, high: float) -> None:
    # Written so that NaN fails.
    if low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK:
        return
    if not np.isfinite([low, high]).all():
        advice = "replace the values that are not finite"
    elif low >= -1 - _FLOAT_SLACK and high <= 1 + _FLOAT_SLACK:
        advice = "if the image is in [-1,1], pass (array + 1) / 2"
    elif low >= -_FLOAT_SLACK:
        advice = f"divide by the largest value that the image could have ({255 if high <= 255 else 65535}?)"
    else:
        advice = "scale it to [0,1]"
    raise ValueError(f"expected floats in [0,1], found {low:.4g} to {high:.4g}; {advice}")
