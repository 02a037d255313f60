"""What a photograph says beside its pixels, as bytes that a writer can put into the new file unchanged.

Only what would be wrong about the new picture is changed: the orientation (the pixels are upright now), the
recorded width and height where they were swapped, and the preview of the hazy picture inside the EXIF.
"""

import re
import struct
from collections.abc import Iterator

# PNG chunks about the picture as a whole; those that describe its coding (sBIT, tRNS, PLTE) are not kept.
PNG_CHUNKS = frozenset(
    (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"mDCV", b"cLLI", b"pHYs")
    + (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"eXIf")
)
# TIFF tags about the picture: document, camera, resolution, author, XMP, IPTC, ICC profile, place on earth.
TIFF_TAGS = frozenset(
    (269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 700, 18246, 33432, 33723, 34675)
    + (33550, 33922, 34264, 34735, 34736, 34737)
)
EXIF_IFD, GPS_IFD = 0x8769, 0x8825

_EXIF_HEADER = b"Exif\0\0"
_XMP_HEADERS = (b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0")
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0"
_ORIENTATION, _PIXEL_X, _PIXEL_Y = 0x0112, 0xA002, 0xA003


def upright_exif(exif: bytes, orientation: int) -> bytes:
    """EXIF (with or without its "Exif" header) of a picture that was turned upright from `orientation`.

    Changed in place, so that maker notes keep their offsets. EXIF that cannot be followed is returned as it
    is where the picture was upright already, and is dropped (b"") where it would turn the picture again.
    """
    header = _EXIF_HEADER if exif.startswith(_EXIF_HEADER) else b""
    data = bytearray(exif[len(header) :])
    try:
        order = {b"II": "<", b"MM": ">"}[bytes(data[:2])]
        entries, preview = _directory(data, struct.unpack_from(order + "L", data, 4)[0], order)
        if _ORIENTATION in entries:
            struct.pack_into(order + "HHLHH", data, entries[_ORIENTATION], _ORIENTATION, 3, 1, 1, 0)
        struct.pack_into(order + "L", data, preview, 0)
        if orientation >= 5 and EXIF_IFD in entries:
            start = struct.unpack_from(order + "L", data, entries[EXIF_IFD] + 8)[0]
            inner, _ = _directory(data, start, order)
            if _PIXEL_X in inner and _PIXEL_Y in inner:
                x, y = (slice(inner[tag] + 2, inner[tag] + 12) for tag in (_PIXEL_X, _PIXEL_Y))
                data[x], data[y] = data[y], data[x]
    except (KeyError, struct.error):
        return exif if orientation == 1 else b""
    return header + bytes(data)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP whose tiff:Orientation says upright."""
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>)\s*)[2-8]", rb"\g<1>1", xmp)


def jpeg_segments(applications: list[tuple[str, bytes]], orientation: int) -> bytes:
    """The segments of a JPEG to keep, ready to be written: EXIF, XMP, ICC profile, IPTC and comments.

    `applications` is Pillow's `applist`. What belongs to the old file (its multi-picture index, its gain
    map, its signature, the encoder's own markers) is left out.
    """
    kept = b""
    for name, data in applications:
        marker = 0xFE if name == "COM" else 0xE0 + int(name[3:])
        if name == "APP1" and data.startswith(_EXIF_HEADER):
            data = upright_exif(data, orientation)
        elif name == "APP1" and data.startswith(_XMP_HEADERS):
            data = upright_xmp(data)
        elif not (
            name == "COM"
            or (name == "APP2" and data.startswith(b"ICC_PROFILE\0"))
            or (name == "APP13" and data.startswith(b"Photoshop 3.0\0"))
        ):
            continue
        if data and data not in kept:
            kept += struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
    return kept


def png_chunks(file: bytes | memoryview, orientation: int) -> list[tuple[bytes, bytes]]:
    """The chunks (type, data) of a whole PNG file that are about the picture, in their order.

    An orientation that is kept in an eXIf chunk or in XMP says upright afterwards.
    """
    kept = []
    for kind, data in _png_chunks(file):
        if kind == b"eXIf":
            data = upright_exif(data, orientation)
        elif kind == b"iTXt" and data.startswith(_PNG_XMP):
            data = upright_xmp(data)
        if kind in PNG_CHUNKS and data:
            kept.append((kind, data))
    return kept


def is_lossless_webp(file: bytes | memoryview) -> bool:
    """Whether the first picture of a whole WebP file is coded without loss."""
    position = 12
    while position + 8 <= len(file):
        kind, size = struct.unpack_from("<4sL", file, position)
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8L"
        position += 8 + size + (size & 1)
    return False


def _directory(data: bytearray, start: int, order: str) -> tuple[dict[int, int], int]:
    """({tag: position of its 12 bytes}, position of the link to the next directory)."""
    (count,) = struct.unpack_from(order + "H", data, start)
    positions = [start + 2 + 12 * i for i in range(count)]
    end = start + 2 + 12 * count
    struct.unpack_from(order + "L", data, end)
    return {struct.unpack_from(order + "H", data, at)[0]: at for at in positions}, end


def _png_chunks(file: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position + 12 <= len(file):
        size, kind = struct.unpack_from(">L4s", file, position)
        if kind == b"IEND":
            return
        if kind != b"IDAT":
            yield kind, bytes(file[position + 8 : position + 8 + size])
        position += 12 + size
