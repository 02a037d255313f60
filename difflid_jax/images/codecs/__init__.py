"""Photographs as bytes: one module per format, each with `read` and `encode`.

libvips (pyvips, LGPL; 18 MB installed) decodes and encodes PNG and TIFF at any bit depth. Pillow does JPEG,
WebP and BMP, which hold 8 bits only, because its JPEG encoder takes the quantization tables of the file that
was read. Metadata are copied as raw bytes, chunk by chunk, segment by segment and tag by tag: libvips keeps
only some of them, Pillow re-encodes text and types, tifffile cannot write EXIF directories, and exiv2, which
carries EXIF, IPTC and XMP only, is under the GPL and installs 49 MB.
"""

import io
from typing import Any, NamedTuple

from jaxtyping import UInt8, UInt16
from numpy import ndarray
from PIL import Image

Samples = UInt8[ndarray, "h w c"] | UInt16[ndarray, "h w c"]


class Unsupported(ValueError):
    """An intact file of an unsupported kind; the message says which, and what to do."""


class Decoded(NamedTuple):
    """A decoded file.

    samples: (H,W,C) as stored, `colours` (1: grey, 3: RGB) channels first, then those carried unchanged.
    orientation: the EXIF value, 1 to 8. kept: what `encode` of the same module needs besides the samples.
    notes: what a file with other pixels cannot keep.
    """

    samples: Samples
    colours: int
    orientation: int
    kept: Any
    notes: tuple[str, ...] = ()


def encoded(samples: UInt8[ndarray, "h w *c"], form: str, **options: Any) -> bytes:
    """A file of grey (H,W) or (H,W,1), RGB or RGBA samples in Pillow's format `form`."""
    file = io.BytesIO()
    grey = samples.ndim == 3 and samples.shape[2] == 1
    Image.fromarray(samples[..., 0] if grey else samples).save(file, form, **options)
    return file.getvalue()


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError for an image of zero size or of more than `max_pixels`."""
    if width <= 0 or height <= 0:
        raise Unsupported(f"an image of zero size ({width}×{height})")
    if width * height > max_pixels:
        raise Unsupported(
            f"{width}×{height} is {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "raise max_pixels to read it"
        )
