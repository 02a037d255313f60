"""BMP by Pillow: grey, palette (becomes RGB) and RGB; it has no metadata except a resolution."""

import io
from typing import Any

import numpy as np
from PIL import BmpImagePlugin

from difflid_jax.images.codecs import Decoded, Samples, Unsupported, check_size, encoded

_V5_HEADER = 124


def read(data: bytes, max_pixels: int) -> Decoded:
    """Decode a BMP without alpha. Raises: Unsupported for alpha; `DECODING_ERRORS` for damage."""
    try:
        image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    except OSError as error:
        if str(error).startswith("Unsupported BMP"):
            raise Unsupported(f"{error}; save it as PNG") from None
        raise
    check_size(*image.size, max_pixels)
    if image.mode not in ("1", "L", "P", "RGB"):
        raise Unsupported(f"a BMP of mode {image.mode} (expected grey, palette or RGB); save it as PNG")
    header = int.from_bytes(data[14:18], "little")
    profile = header == _V5_HEADER and data[14 + 56 : 14 + 60] in (b"DEBM", b"KNIL")
    grey = image.mode in ("1", "L")
    samples = np.atleast_3d(np.array(image.convert("L" if grey else "RGB")))
    kept = {"dpi": image.info["dpi"]} if "dpi" in image.info else {}
    return Decoded(samples, 1 if grey else 3, 1, kept, ("its colour profile",) if profile else ())


def encode(samples: Samples, kept: dict[str, Any]) -> bytes:
    """A BMP of `samples`."""
    return encoded(samples, "BMP", **kept)
