"""PNG: pixels by libvips; every chunk about the image is copied unread, whatever its length."""

import struct
import zlib
from collections.abc import Iterable, Iterator

from difflid_jax.images.codecs import Decoded, Samples, Unsupported, check_size, directory, vips

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CODING = frozenset(b"IHDR PLTE tRNS IDAT IEND".split())
# Chunks about the image as a whole.
_KEPT = frozenset(
    b"iCCP sRGB gAMA cHRM cICP mDCV cLLI pHYs sTER oFFs pCAL sCAL tEXt zTXt iTXt tIME eXIf".split()
)
# Chunks about the old coding, or an animation.
_NOT_KEPT = frozenset(b"sBIT hIST bKGD sPLT acTL fcTL fdAT".split())
_PALETTE = 3


def read(data: bytes, max_pixels: int) -> Decoded:
    """Decode a PNG: 8 or 16 bit, grey or RGB, with or without alpha; fewer bits and palettes become 8 bit.

    Raises: Unsupported for an animation or a size beyond `max_pixels`; ValueError for damage.
    """
    width, height = struct.unpack_from(">LL", data, 16)
    check_size(width, height, max_pixels)
    chunks = list(_chunks(data))
    if not chunks or chunks[-1][0] != b"IEND":
        raise ValueError("its end is missing")
    for kind, content in chunks:
        if kind == b"acTL" and (frames := int.from_bytes(content[:4])) > 1:
            raise Unsupported(f"an animated PNG of {frames} frames (expected one); save the frame to restore")
    samples = vips.decode(_join(chunk for chunk in chunks if chunk[0] in _CODING), "pngload_buffer")
    # A background colour is an index or a value of few bits before it is converted.
    converted = data[24] < 8 or data[25] == _PALETTE
    orientation, kept = 1, []
    for kind, content in chunks:
        if kind == b"eXIf":
            orientation = directory.orientation_of(content)
            content = directory.updated_exif(content, width, height)
        if kind in _KEPT or _safe_to_copy(kind) or (kind == b"bKGD" and not converted):
            kept.append((kind, content))
    return Decoded(samples, 1 if samples.shape[2] < 3 else 3, orientation, kept)


def encode(samples: Samples, kept: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of `samples` with the chunks (type, content) that `read` kept."""
    coded = vips.encode(samples, "pngsave_buffer", compression=6, filter="all")
    header, *rest = (chunk for chunk in _chunks(coded) if chunk[0] in _CODING)
    return _join([header, *kept, *rest])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) up to the end; what is cut off is left out."""
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        size, kind = struct.unpack_from(">L4s", data, position)
        if position + 12 + size > len(data):
            return
        yield kind, data[position + 8 : position + 8 + size]
        if kind == b"IEND":
            return
        position += 12 + size


def _join(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    parts = [_SIGNATURE]
    for kind, content in chunks:
        checksum = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">L", len(content)), kind, content, struct.pack(">L", checksum)]
    return b"".join(parts)


def _safe_to_copy(kind: bytes) -> bool:
    """Whether the standard lets an editor that does not know a chunk copy it: ancillary, safe to copy."""
    unknown = kind.isalpha() and kind not in _CODING | _NOT_KEPT
    return unknown and kind[0:1].islower() and kind[3:4].islower()
