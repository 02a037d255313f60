"""TIFF and BigTIFF: pixels by libvips, every tag about the image copied unchanged.

Written as classic TIFF, deflate with horizontal differences: libvips writes the pixels, and its directory is
replaced by one that takes the tags about the pixels from it and all others from the file that was read.
"""

import contextlib
import struct
from collections.abc import Iterable

import numpy as np

from difflid_jax.images.codecs import Decoded, Samples, Unsupported, check_size, directory, vips
from difflid_jax.images.codecs.directory import Directory, Entry, Reader
from difflid_jax.images.codecs.jpeg import without_previews

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 255, 256, 257, 258, 259
_PHOTOMETRIC, _CHANNELS, _SUBDIRECTORIES, _TILE_WIDTH, _TILE_HEIGHT = 262, 277, 330, 322, 323
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _PHOTOSHOP, _LAYERS, _DNG_VERSION = 338, 339, 34377, 37724, 50706
# Tags about how the pixels are coded: a decoder needs no others, and those of the new file replace them.
_CODING = frozenset(
    (254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290)
    + (291, 292, 293, 317, 320, 321, 322, 323, 324, 325, 332, 333, 334, 336, 338, 339, 340, 341, 347, 512)
    + (513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 559)
)
# Positions in the file, in tags or as types of tags.
_POINTER_TAGS = frozenset((330, directory.EXIF, directory.GPS, directory.INTEROPERABILITY))
_POINTER_TYPES = (13, 18)

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 3, 6: 3}
_OTHER_COLOURS = {4: "a mask", 5: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*"}
_OTHER_COLOURS |= {32844: "LogL (high dynamic range)", 32845: "LogLuv (high dynamic range)"}
_RAW_COLOURS = (32803, 34892)
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 50001))
_COMPRESSION_NAMES = {6: "old-style JPEG", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50002: "JPEG XL"}
_COMPRESSION_NAMES |= dict.fromkeys((33003, 33005, 34712), "JPEG 2000")
_COMPRESSION_NAMES |= dict.fromkeys((22610, 34934), "JPEG XR")
_FORMATS = {2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex numbers"}
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MOST_CHANNELS = 8
_MOST_PAGES = 10_000
_DEVELOP = "develop it with a raw converter and save a TIFF, PNG or JPEG"


def read(data: bytes, max_pixels: int) -> Decoded:
    """Decode a TIFF of one page: 8 or 16 bit, grey or RGB (also palette and YCbCr), with further channels.

    Alpha and unspecified channels follow the colours; premultiplied colours are divided by alpha. Fewer bits
    and palettes become 8 bit.

    Raises: Unsupported, naming what the file holds, for everything else: several pages, a preview in front
    of the image (camera raw), floating point, CMYK and so on. ValueError for damage.
    """
    reader = Reader(data)
    page = reader.read(reader.first)
    width, height = _size(page)
    notes = _check_pages(reader, page)
    check_size(width, height, max_pixels)
    colours, extra = _check_kind(page)
    # The limit is meant for up to four channels.
    check_size(width, height, 4 * max_pixels // max(4, colours + len(extra)))
    # libtiff fails on tags that do not matter for the pixels, such as an unknown type or unit.
    samples = vips.decode(reader.keep_only(reader.first, _CODING), "tiffload_buffer")
    if page.integer(_PHOTOMETRIC, 1) == 3:
        # libvips reads a palette of greys as grey.
        samples = np.broadcast_to(samples, (*samples.shape[:2], 3))
    if samples.shape != (height, width, colours + len(extra)):
        raise ValueError(f"expected {height}×{width}×{colours + len(extra)} samples, found {samples.shape}")
    if extra[:1] == (_ASSOCIATED,):
        # libvips has divided the colours by it.
        extra = (_UNASSOCIATED, *extra[1:])
    kept = _kept(reader, page, width, height)
    if _LAYERS in page.entries:
        notes += ("its Photoshop layers",)
    if page.damaged:
        notes += (f"its damaged or unknown tags ({page.damaged})",)
    if extra:
        kept[_EXTRA_SAMPLES] = Entry(3, len(extra), struct.pack(f"<{len(extra)}H", *extra))
    orientation = directory.checked_orientation(page.integer(directory.ORIENTATION, 1))
    return Decoded(samples, colours, orientation, kept, notes)


def encode(samples: Samples, kept: dict[int, Entry | dict]) -> bytes:
    """A TIFF of `samples` with the tags that `read` kept."""
    coded = vips.encode(samples, "tiffsave_buffer", compression="deflate", predictor="horizontal")
    reader = Reader(coded)
    own = {tag: entry for tag, entry in reader.read(reader.first).entries.items() if tag in _CODING}
    extra = kept[_EXTRA_SAMPLES].count if _EXTRA_SAMPLES in kept else 0
    own.pop(_EXTRA_SAMPLES, None)
    own[_PHOTOMETRIC] = Entry(3, 1, struct.pack("<H", 1 if samples.shape[2] - extra == 1 else 2))
    coded += bytes(len(coded) % 2)
    tags = directory.write(own | kept, len(coded))
    return coded[:4] + struct.pack("<L", len(coded)) + coded[8:] + tags


def _size(page: Directory) -> tuple[int, int]:
    return page.integer(_WIDTH, 0), page.integer(_HEIGHT, 0)


def _check_pages(reader: Reader, first: Directory) -> tuple[str, ...]:
    """Which further images are not kept. Raises Unsupported if the first is not the only photograph."""
    width, height = _size(first)
    if _DNG_VERSION in first.entries or first.integer(_PHOTOMETRIC, 0) in _RAW_COLOURS:
        raise Unsupported(f"a camera raw file (its TIFF holds sensor data); {_DEVELOP}")
    pages = _pages(reader)
    others = pages[1:] + list(_subdirectories(reader, pages))
    for other in others:
        if _size(other)[0] * _size(other)[1] > width * height:
            raise Unsupported(
                f"a TIFF whose first image ({width}×{height}) is smaller than another one in it "
                f"({_size(other)[0]}×{_size(other)[1]}), as a preview is; save the photograph alone"
            )
    if _is_reduced(first):
        raise Unsupported(
            f"a TIFF whose first image ({width}×{height}) is marked as a preview, as in camera raw files; "
            + _DEVELOP
        )
    full = [page for page in pages if not _is_reduced(page)]
    if len(full) > 1:
        raise Unsupported(f"a TIFF of {len(full)} pages (expected one); save the page to restore")
    return (f"its reduced copies or previews ({len(others)})",) if others else ()


def _pages(reader: Reader) -> list[Directory]:
    pages = []
    for page in reader.chain():
        pages.append(page)
        if len(pages) > _MOST_PAGES:
            raise Unsupported(f"a TIFF of more than {_MOST_PAGES:,} pages (expected one)")
    return pages


def _subdirectories(reader: Reader, pages: Iterable[Directory]) -> Iterable[Directory]:
    for page in pages:
        entry = page.entries.get(_SUBDIRECTORIES)
        for offset in entry.integers()[:_MOST_PAGES] if entry else ():
            with contextlib.suppress(ValueError, struct.error):
                yield reader.read(offset)


def _is_reduced(page: Directory) -> bool:
    return bool(page.integer(_SUBFILE, 0) & 1) or page.integer(_OLD_SUBFILE, 1) == 2


def _check_kind(page: Directory) -> tuple[int, tuple[int, ...]]:
    """(channels of colour, meaning of each further channel). Raises Unsupported."""
    photometric = page.integer(_PHOTOMETRIC, 1)
    channels = page.integer(_CHANNELS, 1)
    bits = page.entries[_BITS].integers() if _BITS in page.entries else (1,)
    kind = page.integer(_SAMPLE_FORMAT, 1)
    compression = page.integer(_COMPRESSION, 1)
    if kind in _FORMATS or bits[0] > 16:
        what = _FORMATS.get(kind, "integers")
        raise Unsupported(
            f"a TIFF of {bits[0]}-bit {what} (expected 8 or 16-bit unsigned integers); map its values to "
            "[0, 65535] and save it as 16-bit TIFF or PNG"
        )
    if compression not in _COMPRESSIONS:
        what = _COMPRESSION_NAMES.get(compression, f"kind {compression}")
        raise Unsupported(
            f"a TIFF compressed by {what} (expected none, LZW, deflate or JPEG); save it with one of these"
        )
    if photometric not in _COLOURS:
        what = _OTHER_COLOURS.get(photometric, f"colour space {photometric}")
        raise Unsupported(
            f"a TIFF in {what} (expected grey or RGB); convert it to RGB with its colour profile"
        )
    colours = _COLOURS[photometric]
    stored = 1 if photometric == 3 else colours
    allowed = (8, 16) if photometric in (2, 6) else (1, 2, 4, 8, 16)
    if len(set(bits)) != 1 or bits[0] not in allowed:
        raise Unsupported(
            f"a TIFF of {'/'.join(map(str, sorted(set(bits))[:4]))} bits per sample (expected 8 or 16); "
            "save it as 16-bit TIFF or PNG"
        )
    kind, most = {3: ("an RGB", _MOST_CHANNELS), 1: ("a grey", 2)}[stored]
    if photometric == 3:
        kind, most = "a palette", 1
    if not stored <= channels <= most:
        expected = f"{stored} to {most}" if most > stored else stored
        raise Unsupported(
            f"{kind} TIFF of {channels} channels (expected {expected}); save its RGB channels alone"
        )
    extra = channels - stored
    _check_tiles(page)
    meaning = page.entries[_EXTRA_SAMPLES].integers() if _EXTRA_SAMPLES in page.entries else ()
    return colours, tuple([*meaning, *[0] * extra][:extra])


def _check_tiles(page: Directory) -> None:
    """Raise ValueError for tiles much larger than the image, which a decoder would allocate."""
    width, height = _size(page)
    rows, columns = page.integer(_TILE_HEIGHT, 0), page.integer(_TILE_WIDTH, 0)
    if rows * columns > 4 * width * height + (1 << 24):
        raise ValueError(f"tiles of {columns}×{rows} for an image of {width}×{height}")


def _kept(reader: Reader, page: Directory, width: int, height: int) -> dict[int, Entry | dict]:
    """The tags to write again: all but those about coding and pointers, with EXIF and GPS directories."""
    kept: dict[int, Entry | dict] = {
        tag: entry
        for tag, entry in page.entries.items()
        if tag not in _CODING | _POINTER_TAGS and tag != _LAYERS and entry.type not in _POINTER_TYPES
    }
    if _PHOTOSHOP in kept:
        value = without_previews(kept[_PHOTOSHOP].value)
        kept[_PHOTOSHOP] = kept[_PHOTOSHOP]._replace(value=value, count=len(value))
    for tag in (directory.EXIF, directory.GPS):
        if inner := reader.child(page, tag):
            kept[tag] = inner.entries | directory.sized(inner.entries, width, height)
            kept[tag].pop(directory.INTEROPERABILITY, None)
            if nested := reader.child(inner, directory.INTEROPERABILITY):
                sized = nested.entries | directory.sized(nested.entries, width, height)
                kept[tag][directory.INTEROPERABILITY] = sized
    return kept
