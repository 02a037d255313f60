"""Pictures in and out: strict reading, sizes from headers, atomic writing, contact sheets.

A picture of a data set is 8-bit RGB. Two other kinds are the same pixels in another wrapping and are read
too: grey (repeated three times) and opaque alpha (dropped). Everything else would have to be changed to
fit (16 bit, palette, CMYK, a picture one can see through, several frames) and is refused by name, because
a changed ground truth is a wrong score. The size is checked from the header, before memory is taken.
"""

import io
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from difflid_jax.atomic import atomic_write

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"))
MAX_PIXELS = 100_000_000

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
# What Pillow raises for damaged files (Warning: where a program turns warnings into errors).
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError),
    *(MemoryError, OverflowError, RuntimeError, Warning, Image.DecompressionBombError),
)
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
# EXIF orientation → what turns the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """What a picture says about itself: size as it is shown (EXIF orientation applied), format, kind.

    `orientation` is the EXIF value (1: upright).
    `kind` is "rgb", "grey", "alpha" (whether opaque is known only after decoding) or, for what
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
    """Read size, format and kind of a picture without decoding it.

    Raises: ValueError naming the file when it is empty, no picture, of zero size or larger than
    `max_pixels`; OSError when it cannot be opened. UsageError kinds are returned, not raised.
    """
    with open(path, "rb") as file:
        return open_picture(file, os.fspath(path), max_pixels)[1]


def image_size(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a picture from its header; raises as `read_header`."""
    header = read_header(path, max_pixels=max_pixels)
    return header.height, header.width


def check_image(path: str | os.PathLike, *, thorough: bool = True, max_pixels: int = MAX_PIXELS) -> Header:
    """Make sure that `read_image` would accept a picture.

    Thorough decodes it; otherwise only its header and its end are read, which finds everything but damage
    in the middle of a file, and only a picture that leaves doubt (alpha, an unusual end) is decoded.

    Raises: as `read_image`.
    """
    header = read_header(path, max_pixels=max_pixels)
    if thorough or header.kind not in ("rgb", "grey") or not _ends_properly(path, header.format):
        read_image(path, max_pixels=max_pixels)
    return header


def read_image(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture as uint8 (H,W,3) RGB, EXIF orientation applied.

    Grey pictures and opaque alpha are converted (nothing is lost); `max_pixels` bounds height × width.

    Raises: ValueError naming the file, what was found and what to do, for everything else: empty,
    truncated, no picture, zero size, too large, 16-bit, palette, CMYK, transparent, several frames.
    OSError when the file cannot be opened.
    """
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`read_image` for the bytes of an encoded picture; `name` stands for it in errors."""
    return _read(io.BytesIO(data), name, max_pixels)


def write_png(path: str | os.PathLike, array: np.ndarray, *, compress_level: int = 6) -> Path:
    """Write uint8 (H,W,3) RGB or (H,W) grey as PNG under a temporary name, then rename: no half file is seen.

    Raises: ValueError for another shape or dtype.
    """
    array = np.asarray(array)
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or array.size == 0:
        raise ValueError(
            f"{path}: a picture to write must be uint8 of shape (H,W,3) or (H,W), "
            f"found {array.dtype} of shape {array.shape}"
        )
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "xb") as file:
        Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=compress_level)
    return path


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    max_width: int = 320,
    gap: int = 8,
) -> np.ndarray:
    """Arrange pictures in rows on a white sheet, uint8 (H,W,3).

    Pictures are uint8 or float in [0,1] (clamped), (H,W,3), shrunk to `max_width` where wider; rows may
    differ in length. `labels` is one heading per column (strings) or one caption per picture (rows of
    strings).

    Raises: ValueError for no pictures, or labels that do not match them.
    """
    if not rows or not all(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one picture in every row")
    headings, captions = _sheet_labels(rows, labels)
    thumbnails = [[_thumbnail(image, max_width) for image in row] for row in rows]
    columns = max(len(row) for row in rows)
    widths = [max(row[c].width for row in thumbnails if c < len(row)) for c in range(columns)]
    font = ImageFont.load_default(13)
    line = 18
    top = gap + (line if headings else 0)
    heights = [max(image.height for image in row) + (line if captions else 0) for row in thumbnails]
    size = (gap + sum(w + gap for w in widths), top + sum(h + gap for h in heights))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [gap + sum(w + gap for w in widths[:c]) for c in range(columns)]
    for left, width, heading in zip(lefts, widths, headings, strict=False):
        draw.text((left, gap // 2), _fit(heading, width, font), fill="black", font=font)
    for r, row in enumerate(thumbnails):
        for c, image in enumerate(row):
            sheet.paste(image, (lefts[c], top))
            if captions:
                caption = _fit(captions[r][c], widths[c], font)
                draw.text((lefts[c], top + image.height + 1), caption, fill="black", font=font)
        top += heights[r] + gap
    return np.asarray(sheet)


def open_picture(file: BinaryIO, name: str, max_pixels: int) -> tuple[Image.Image, Header]:
    """Open a picture of any kind and check its header, before anything is decoded.

    What decodes it afterwards meets `DECODING_ERRORS` where the file is damaged.

    Raises: as `read_header`.
    """
    start = file.read(16)
    file.seek(0)
    if not start:
        raise ValueError(f"{name}: the file is empty (0 bytes); copy or download it again")
    form = _format(start)
    if form is None:
        if other := _other_format(start):
            raise ValueError(f"{name}: {other} is not supported; convert it to PNG, JPEG or plain TIFF")
        raise ValueError(
            f"{name}: no picture (expected PNG, JPEG, WebP, TIFF or BMP; the file begins with {start[:8]!r})"
        )
    if form == "PNG" and (size := _png_size(file)) and 0 in size:
        raise ValueError(f"{name}: a picture of zero size ({size[0]}×{size[1]})")
    if form not in Image.OPEN:
        Image.init()
    try:
        # Not Image.open: its own size limit is a global of the process. Ours is checked right below,
        # before anything is decoded.
        picture = Image.OPEN[form][0](file, "")
        width, height = picture.size
        if width * height > max_pixels:
            raise _TooLarge(
                f"{name}: {width}×{height} is {width * height:,} pixels, more than the limit of "
                f"{max_pixels:,}; if the picture is meant, raise max_pixels"
            )
        kind = _kind(picture, file)
        orientation = orientation_of(picture)
        if orientation >= 5:
            width, height = height, width
    except _TooLarge:
        raise
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}: a damaged {form} ({reason(error)}); copy or download it again") from error
    return picture, Header(height, width, form, kind, orientation)


class _TooLarge(ValueError):
    pass


def _read(file: BinaryIO, name: str, max_pixels: int) -> np.ndarray:
    picture, header = open_picture(file, name, max_pixels)
    if not header.readable:
        raise ValueError(
            f"{name}: a {header.kind} picture (expected 8-bit RGB, or grey or opaque alpha, which convert "
            "without loss); if its conversion is meant, convert it to an 8-bit RGB PNG first"
        )
    try:
        picture.load()
        if header.kind == "alpha":
            picture = picture.convert("RGBA")
            if picture.getchannel("A").getextrema() != (255, 255):
                raise _Transparent(
                    f"{name}: a transparent picture (expected RGB, or alpha that is 255 everywhere); "
                    "lay it on the background that is meant and save it as RGB"
                )
        picture = picture.convert("RGB")
        if header.orientation in UPRIGHT:
            picture = picture.transpose(UPRIGHT[header.orientation])
        return np.array(picture)
    except _Transparent:
        raise
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{name}: a damaged or truncated {header.format} ({reason(error)}); copy or download it again"
        ) from error


class _Transparent(ValueError):
    pass


def _ends_properly(path: str | os.PathLike, form: str) -> bool:
    end = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(form)
    if end is None:
        return False
    with open(path, "rb") as file:
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


def _other_format(start: bytes) -> str | None:
    """What people's photographs come in, and is not read here."""
    if start[4:8] == b"ftyp":
        return "HEIC or AVIF (ISO media)"
    return "BigTIFF" if start[:4] in (b"II+\0", b"MM\0+") else None


def _format(start: bytes) -> str | None:
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return next((form for magic, form in _MAGIC if start.startswith(magic)), None)


def _png_size(file: BinaryIO) -> tuple[int, int] | None:
    header = file.read(24)
    file.seek(0)
    return struct.unpack(">II", header[16:24]) if len(header) == 24 and header[12:16] == b"IHDR" else None


def _kind(picture: Image.Image, file: BinaryIO) -> str:
    # Pillow opens 16-bit RGB as mode "RGB" and drops the low bytes: the mode alone does not tell.
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        return "several-frame"
    if picture.mode.startswith(("I", "F")) or _bits(picture, file) > 8:
        return "16-bit"
    if picture.mode == "P":
        return "palette"
    if picture.mode in ("RGBA", "LA") or "transparency" in picture.info:
        return "alpha"
    return {"RGB": "rgb", "L": "grey", "1": "grey"}.get(picture.mode, picture.mode)


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation; of a PNG with EXIF behind its pixels only once it is decoded, 1 before."""
    # Pillow itself turns a TIFF upright, and gives the size that it has then.
    if picture.format == "TIFF":
        return 1
    # Image.getexif would decode a whole PNG to look behind its pixels.
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1)
    except (MemoryError, Warning):
        raise
    except DECODING_ERRORS:
        # Whose pixels are sound is not refused for what is said beside them.
        return 1
    return orientation if orientation in UPRIGHT else 1


def _bits(picture: Image.Image, file: BinaryIO) -> int:
    if picture.format == "PNG":
        position = file.tell()
        file.seek(24)
        bits = file.read(1)[0]
        file.seek(position)
        return bits
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return 8


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _sheet_labels(rows, labels) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    if labels is None or not len(labels):
        return (), ()
    if all(isinstance(label, str) for label in labels):
        columns = max(len(row) for row in rows)
        if len(labels) != columns:
            raise ValueError(f"{len(labels)} headings for a contact sheet of {columns} columns")
        return labels, ()
    if [len(row) for row in labels] != [len(row) for row in rows]:
        raise ValueError("captions of a contact sheet must match its pictures row by row")
    return (), labels


def _thumbnail(image: np.ndarray, max_width: int) -> Image.Image:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.asarray(image, np.float32), 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    if picture.width <= max_width:
        return picture
    height = max(1, round(picture.height * max_width / picture.width))
    return picture.resize((max_width, height), Image.LANCZOS)


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
