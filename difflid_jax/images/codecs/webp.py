"""WebP by Pillow: lossy or lossless as it was, with alpha, EXIF, XMP and colour profile."""

import io
import struct
from typing import Any

import numpy as np
from PIL import WebPImagePlugin

from difflid_jax.images.codecs import Decoded, Samples, Unsupported, check_size, directory, encoded
from difflid_jax.images.codecs.jpeg import LEAST_QUALITY


def read(data: bytes, max_pixels: int) -> Decoded:
    """Decode a WebP of one frame. Raises: Unsupported for several; `DECODING_ERRORS` for damage."""
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    check_size(*image.size, max_pixels)
    if image.n_frames > 1:
        raise Unsupported(
            f"an animated WebP of {image.n_frames} frames (expected one); save the frame to restore"
        )
    exif = image.info.get("exif", b"")
    kept = {
        "lossless": _is_lossless(data),
        "exif": directory.updated_exif(exif, *image.size),
        "icc_profile": image.info.get("icc_profile", b""),
        "xmp": image.info.get("xmp", b""),
    }
    return Decoded(np.array(image), 3, directory.orientation_of(exif), kept)


def encode(samples: Samples, kept: dict[str, Any]) -> bytes:
    """A WebP of `samples`, coded like the file that was read."""
    quality = 80 if kept["lossless"] else LEAST_QUALITY
    # `exact` keeps the colours under full transparency.
    return encoded(samples, "WEBP", quality=quality, exact=True, **kept)


def _is_lossless(data: bytes) -> bool:
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sL", data, position)
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        position += 8 + size + (size & 1)
    return False
