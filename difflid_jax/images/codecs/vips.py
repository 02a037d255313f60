"""libvips as a decoder and an encoder of whole files in memory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from difflid_jax.images.codecs import Samples, Unsupported

_TYPES = {"uchar": np.uint8, "ushort": np.uint16}


def decode(data: bytes | bytearray, loader: str) -> Samples:
    """Decode with the operation `loader`, such as "pngload_buffer".

    Raises: Unsupported for samples or a coding that libvips does not read; ValueError with its message for
    damaged or truncated data.
    """

    def load(images: Any) -> Samples:
        image = getattr(images, loader)(data, access="sequential", fail_on="error")
        if image.format not in _TYPES:
            raise Unsupported(f"samples of type {image.format} (expected 8 or 16 bit); save it as 16-bit PNG")
        shape = image.height, image.width, image.bands
        return np.frombuffer(image.write_to_memory(), _TYPES[image.format]).reshape(shape)

    return _called(load)


def encode(samples: Samples, saver: str, **options: str | int | bool) -> bytes:
    """Encode with the operation `saver`, such as "pngsave_buffer", without metadata. Raises: ValueError."""
    height, width, channels = samples.shape
    deep = samples.dtype == np.uint16
    grey, colour = ("grey16", "rgb16") if deep else ("b-w", "srgb")

    def save(images: Any) -> bytes:
        kind = "ushort" if deep else "uchar"
        source = images.new_from_memory(np.ascontiguousarray(samples).data, width, height, channels, kind)
        source = source.copy(interpretation=grey if channels < 3 else colour)
        return getattr(source, saver)(keep="none", **options)

    return _called(save)


def _called(operation: Callable[[Any], Any]) -> Any:
    # Imported here so that programs that do not need libvips do not wait for it to load.
    import pyvips

    pyvips.cache_set_max(0)
    try:
        return operation(pyvips.Image)
    except pyvips.Error as error:
        message = _first_of(str(error))
    if "not supported" in message or "not configured" in message:
        raise Unsupported(f"{message}; save it without compression, or as PNG")
    raise ValueError(message)


def _first_of(message: str) -> str:
    """The first of libvips' messages, which repeat."""
    lines = [line.partition(": ")[2].strip() for line in message.splitlines()]
    return next((line for line in lines if line and line != "load error"), " ".join(message.split()))
