"""Images of data sets: strict reading, sizes from headers, atomic writing.

An image of a data set is 8-bit RGB. Two other kinds hold the same pixels and are converted: grey (repeated
three times) and opaque alpha (dropped). Everything else would lose or change something (16 bit, palette,
CMYK, transparency, further channels, several frames) and is refused by name, because a changed ground truth
gives a wrong score. Sizes are checked in the header, before memory is allocated.

Pillow decodes here; photographs, whose bit depth and metadata are kept, are read by `images.photos`.
"""

import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from difflid_jax.atomic import atomic_write
from difflid_jax.images import formats
from difflid_jax.images.formats import DECODING_ERRORS, reason

MAX_PIXELS = 100_000_000

_ORIENTATION = 0x0112
# EXIF orientation → the transposition that turns the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# How Pillow's errors begin for intact files that it cannot read, such as 12-bit JPEG and floating-point RGB.
_UNSUPPORTED = ("cannot handle", "unknown pixel mode", "unknown data organization")
# Text and profiles, which Pillow inflates and limits to 1 MB although the pixels do not depend on them.
_PNG_TEXT = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))


@dataclass(frozen=True)
class Header:
    """Size (with EXIF orientation applied), format and kind of an image, from its header.

    `orientation` is the EXIF value (1: upright).
    `kind` is "rgb", "grey", "alpha" (whether it is opaque is known only after decoding) or, for images that
    `read_image` refuses, a reason such as "16-bit" or "palette".
    """

    height: int
    width: int
    format: str
    kind: str
    orientation: int = 1

    @property
    def readable(self) -> bool:
        return self.kind in ("rgb", "grey", "alpha")


def read_header(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size, format and kind of an image without decoding it.

    Raises: ValueError naming the file if it is empty, not an image, of zero size or larger than
    `max_pixels`; OSError if it cannot be opened. An unsupported kind is returned, not raised.
    """
    with open(path, "rb") as file:
        return open_image(file, os.fspath(path), max_pixels)[1]


def check_image(path: str | os.PathLike, *, thorough: bool = True, max_pixels: int = MAX_PIXELS) -> Header:
    """Check that `read_image` would accept an image.

    A thorough check decodes it. Otherwise only the header and the end of the file are read, which finds
    everything except damage in the middle, and only doubtful images (alpha, an unusual end) are decoded.

    Raises: as `read_image`.
    """
    header = read_header(path, max_pixels=max_pixels)
    if thorough or header.kind not in ("rgb", "grey") or not _ends_properly(path, header.format):
        read_image(path, max_pixels=max_pixels)
    return header


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image as RGB with its EXIF orientation applied.

    Grey images and opaque alpha are converted without loss; `max_pixels` bounds height × width.

    Raises: ValueError naming the file, what was found and what to do, for everything else: empty, truncated,
    not an image, zero size, too large, 16-bit, palette, CMYK, transparent, several frames. OSError if the
    file cannot be opened.
    """
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """`read_image` for the bytes of an encoded image; `name` stands for it in errors."""
    return _read(io.BytesIO(data), name, max_pixels)


def write_png(path: str | os.PathLike, array: np.ndarray, *, compress_level: int = 6) -> Path:
    """Write uint8 (H,W,3) RGB or (H,W) grey as PNG, atomically (temporary name, then rename).

    Raises: ValueError for another shape or dtype.
    """
    array = np.asarray(array)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise ValueError(
            f"{path}: an image to write must be uint8 of shape (H,W,3) or (H,W), "
            f"found {array.dtype} of shape {array.shape}"
        )
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "xb") as file:
        Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=compress_level)
    return path


def open_image(file: io.BufferedIOBase, name: str, max_pixels: int) -> tuple[Image.Image, Header]:
    """Open an image of any kind with Pillow and check its header; nothing is decoded yet.

    Decoding it may raise `DECODING_ERRORS` if the file is damaged.

    Raises: as `read_header`.
    """
    start = file.read(formats.SIGNATURE_BYTES)
    file.seek(0)
    form = formats.identify(start, name)
    if form == "PNG" and (size := _png_size(file)) and 0 in size:
        raise ValueError(f"{name}: an image of zero size ({size[0]}×{size[1]})")
    if form not in Image.OPEN:
        Image.init()
    try:
        image = _open(form, file)
        width, height = image.size
        if width * height > max_pixels:
            raise _TooLarge(
                f"{name}: {width}×{height} is {width * height:,} pixels, more than the limit of "
                f"{max_pixels:,}; raise max_pixels to read it"
            )
        kind = _kind(image, file)
        orientation = _orientation(image)
        if orientation >= 5:
            width, height = height, width
    except _TooLarge:
        raise
    except DECODING_ERRORS as error:
        if str(error).startswith(_UNSUPPORTED):
            raise ValueError(
                f"{name}: an unsupported kind of {form} ({reason(error)}); convert it to an 8-bit RGB PNG"
            ) from error
        raise ValueError(f"{name}: a damaged {form} ({reason(error)}); copy or download it again") from error
    return image, Header(height, width, form, kind, orientation)


def _open(form: str, file: io.BufferedIOBase) -> Image.Image:
    # Not Image.open: its size limit is a global of the process.
    try:
        return Image.OPEN[form][0](file, "")
    except ValueError:
        if form != "PNG":
            raise
        file.seek(0)
        return Image.OPEN[form][0](_without_text(file), "")


class _TooLarge(ValueError):
    pass


def _read(file: io.BufferedIOBase, name: str, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    image, header = open_image(_without_text(file), name, max_pixels)
    if not header.readable:
        raise ValueError(
            f"{name}: a {header.kind} image (expected 8-bit RGB, or grey or opaque alpha, which convert "
            "without loss); convert it to an 8-bit RGB PNG first if that is intended"
        )
    try:
        image.load()
        image = image.convert("RGBA" if header.kind == "alpha" else "RGB")
        least_alpha = image.getextrema()[-1][0] if header.kind == "alpha" else 255
        image = image.convert("RGB")
        if header.orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[header.orientation])
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{name}: a damaged or truncated {header.format} ({reason(error)}); copy or download it again"
        ) from error
    if least_alpha < 255:
        raise ValueError(
            f"{name}: a transparent image (expected RGB, or alpha that is 255 everywhere); lay it on the "
            "intended background and save it as RGB"
        )
    return np.array(image)


def _ends_properly(path: str | os.PathLike, form: str) -> bool:
    end = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(form)
    if end is None:
        return False
    with open(path, "rb") as file:
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


def _png_size(file: io.BufferedIOBase) -> tuple[int, int] | None:
    header = file.read(24)
    file.seek(0)
    return struct.unpack(">II", header[16:24]) if len(header) == 24 and header[12:16] == b"IHDR" else None


def _without_text(file: io.BufferedIOBase) -> io.BufferedIOBase:
    """A copy of a PNG without text and profile; other files as they are."""
    signature = file.read(8)
    file.seek(0)
    if signature != b"\x89PNG\r\n\x1a\n":
        return file
    data = memoryview(file.read())
    parts, position = [data[:8]], 8
    while position < len(data):
        size = int.from_bytes(data[position : position + 4])
        chunk = data[position : position + 12 + size]
        if bytes(chunk[4:8]) not in _PNG_TEXT:
            parts.append(chunk)
        position += 12 + size
    return io.BytesIO(b"".join(parts))


def _kind(image: Image.Image, file: io.BufferedIOBase) -> str:
    # Pillow opens 16-bit RGB as mode "RGB" and drops the low bytes, and drops channels that TIFF does not
    # specify: the mode alone is not enough.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        return "several-frame"
    if image.mode.startswith(("I", "F")) or _bits(image, file) > 8:
        return "16-bit"
    if image.mode == "P":
        return "palette"
    if image.format == "TIFF":
        channels = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        if channels != len(image.getbands()):
            return f"{channels}-channel"
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        return "alpha"
    return {"RGB": "rgb", "L": "grey", "1": "grey"}.get(image.mode, image.mode)


def _orientation(image: Image.Image) -> int:
    # Pillow itself turns a TIFF upright, and returns the resulting size.
    if image.format == "TIFF":
        return 1
    # Image.getexif would decode a whole PNG to look behind its pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (MemoryError, Warning):
        raise
    except DECODING_ERRORS:
        # Intact pixels are not refused because of damaged metadata.
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _bits(image: Image.Image, file: io.BufferedIOBase) -> int:
    if image.format == "PNG":
        position = file.tell()
        file.seek(24)
        bits = file.read(1)[0]
        file.seek(position)
        return bits
    if image.format == "TIFF":
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 8
