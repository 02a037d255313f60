"""JPEG: pixels by Pillow, with the quantization tables and the segments of the file that was read."""

import functools
import io
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from difflid_jax.images.codecs import Decoded, Samples, Unsupported, check_size, directory, encoded

# A restored image is coded at least this well, so that a coarse quantizer does not lose the detail that was
# hidden by haze.
LEAST_QUALITY = 92
_SCAN, _END = 0xDA, 0xD9
# Some writers pad their files.
_PADDING = 64
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The next marker after coded data, in which 0xFF is followed by 0 or a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_SEQUENTIAL = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_PREVIEW_RESOURCES = (1033, 1036)
_OTHER_IMAGES = "its further images (gain map, depth or preview)"
_CREDENTIALS = "its content credentials (a signature of the old pixels)"
_VIDEO = "its motion photo (a video behind the image)"


def read(data: bytes, max_pixels: int) -> Decoded:
    """Decode a JPEG of 8 bits, grey or colour.

    Raises: Unsupported for 12 bits, lossless coding, CMYK or a size beyond `max_pixels`; `DECODING_ERRORS`
    for damage.
    """
    behind = _check_coding(data)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    check_size(*image.size, max_pixels)
    if image.mode not in ("L", "RGB"):
        raise Unsupported(
            f"a {image.mode} JPEG (expected grey or RGB colours); convert it to RGB with its colour profile"
        )
    samples = np.array(image)
    kept = {
        "quantization": dict(image.quantization),
        "subsampling": JpegImagePlugin.get_sampling(image),
        "progressive": bool(image.info.get("progressive")),
        "dpi": image.info.get("dpi", (0, 0)),
    }
    kept["segments"], orientation, notes = _segments(image)
    return Decoded(np.atleast_3d(samples), 1 if image.mode == "L" else 3, orientation, kept, notes or behind)


def encode(samples: Samples, kept: dict[str, Any]) -> bytes:
    """A JPEG of `samples`, coded like the file that was read but no worse than `LEAST_QUALITY`."""
    return encoded(
        samples,
        "JPEG",
        qtables=_finer(kept["quantization"]),
        subsampling=kept["subsampling"],
        progressive=kept["progressive"],
        dpi=kept["dpi"],
        extra=kept["segments"],
    )


def _frames(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position) of each segment of the first image, up to and including its end (EOI)."""
    position = 2
    while position + 2 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        yield marker, position
        if marker == _END:
            return
        position += 2
        if marker not in _STANDALONE:
            position += int.from_bytes(data[position : position + 2])
        if marker == _SCAN and (found := _MARKER.search(data, position)):
            position = found.start()


def _check_coding(data: bytes) -> tuple[str, ...]:
    """What follows the image. Raises Unsupported for more than 8 bits or lossless coding."""
    for marker, position in _frames(data):
        if marker in _FRAME_HEADERS and position + 5 <= len(data):
            bits = data[position + 4]
            if bits in (12, 16) or marker not in _SEQUENTIAL:
                kind = f"{bits} bits per sample" if bits != 8 else "lossless or hierarchical coding"
                raise Unsupported(
                    f"a JPEG of {kind} (expected 8 bits, baseline or progressive); convert it to a 16-bit "
                    "TIFF or PNG, or to an 8-bit JPEG, with the program that wrote it"
                )
        behind = len(data) - position - 2
        if marker == _END and behind > _PADDING:
            return (f"the {behind:,} bytes behind its image",)
    return ()


def _segments(image: JpegImagePlugin.JpegImageFile) -> tuple[bytes, int, tuple[str, ...]]:
    """(segments to write: EXIF, XMP, ICC profile, IPTC and comments; orientation; what is not kept)."""
    kept, orientation, notes = {}, 1, {}  # dicts for their order: a file may hold 40,000 segments
    for name, data in image.applist:
        marker = 0xFE if name == "COM" else 0xE0 + int(name[3:])
        if name == "APP1" and data.startswith(b"Exif\0\0"):
            orientation = directory.orientation_of(data) if orientation == 1 else orientation
            data = directory.updated_exif(data, *image.size)
        elif name == "APP1" and data.startswith(
            (b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/")
        ):
            if b"MotionPhoto" in data or b"MicroVideo" in data:
                notes[_VIDEO] = None
        elif name == "APP13" and data.startswith(b"Photoshop 3.0\0"):
            data = data[:14] + without_previews(data[14:])
        elif name != "COM" and not (name == "APP2" and data.startswith(b"ICC_PROFILE\0")):
            if name == "APP2" and data.startswith((b"MPF\0", b"urn:iso:std:iso:ts:21496")):
                notes[_OTHER_IMAGES] = None
            elif name == "APP11":
                notes[_CREDENTIALS] = None
            continue
        kept[struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data] = None
    return b"".join(kept), orientation, tuple(notes)


def without_previews(resources: bytes) -> bytes:
    """Photoshop's image resources (8BIM) without previews, which show the old pixels."""
    kept, position = bytearray(), 0
    while resources[position : position + 4] == b"8BIM" and position + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, position + 4)
        # The name is a Pascal string, padded to even length as the data are.
        start = position + 6 + (resources[position + 6] + 2) // 2 * 2
        size = int.from_bytes(resources[start : start + 4])
        end = start + 4 + size + size % 2
        if number not in _PREVIEW_RESOURCES:
            kept += resources[position:end]
        position = end
    return bytes(kept) + resources[position:]


def _finer(tables: dict[int, list[int]]) -> list[list[int]]:
    """The file's own quantization, no coarser than `LEAST_QUALITY`."""
    luma, chroma = _quantization(LEAST_QUALITY)
    ours = [chroma if i else luma for i in range(len(tables))]
    # 16-bit tables would need extended sequential coding: the minimum is always below 256.
    return [
        [min(pair) for pair in zip(theirs, mine, strict=True)]
        for theirs, mine in zip((tables[i] for i in sorted(tables)), ours, strict=True)
    ]


@functools.cache
def _quantization(quality: int) -> tuple[list[int], ...]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return tuple(image.quantization[i] for i in (0, 1))
