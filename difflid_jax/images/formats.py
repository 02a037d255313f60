"""The kind of a file, from its first bytes: the supported formats, and names for unsupported ones."""

import struct
import zlib
from pathlib import PurePath

from PIL import Image

EXTENSIONS = frozenset((".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
SIGNATURE_BYTES = 16

# What Pillow raises for damaged files (Warning: in programs that turn warnings into errors).
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError),
    *(MemoryError, OverflowError, RuntimeError, Warning, Image.DecompressionBombError),
)

_EXPORT = "export it as PNG, JPEG or TIFF"
_RAW = "a camera raw file"
_DEVELOP = "develop it with a raw converter and save a TIFF, PNG or JPEG"

_SUPPORTED = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
)
# (offset, magic bytes, name, what to do). The raw formats come first: some of them look like TIFF.
UNSUPPORTED = (
    (8, b"CR\x02\0", f"{_RAW} (CR2)", _DEVELOP),
    (8, b"IIII", f"{_RAW} (IIQ)", _DEVELOP),
    (4, b"ftypcrx", f"{_RAW} (CR3)", _DEVELOP),
    (0, b"IIRO", f"{_RAW} (ORF)", _DEVELOP),
    (0, b"IIRS", f"{_RAW} (ORF)", _DEVELOP),
    (0, b"MMOR", f"{_RAW} (ORF)", _DEVELOP),
    (0, b"IIU\0", f"{_RAW} (RW2)", _DEVELOP),
    (0, b"FUJIFILMCCD-RAW", f"{_RAW} (RAF)", _DEVELOP),
    (6, b"HEAPCCDR", f"{_RAW} (CRW)", _DEVELOP),
    (0, b"FOVb", f"{_RAW} (X3F)", _DEVELOP),
    (0, b"\0MRM", f"{_RAW} (MRW)", _DEVELOP),
    (4, b"ftypavi", "an AVIF image", _EXPORT),
    (4, b"ftypqt", "a QuickTime video", "save one frame as PNG"),
    (4, b"ftypmp4", "an MP4 video", "save one frame as PNG"),
    (4, b"ftypisom", "an MP4 video", "save one frame as PNG"),
    (4, b"ftyp", "a HEIC image (ISO media file)", _EXPORT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image", _EXPORT),
    (0, b"\xff\x0a", "a JPEG XL image", _EXPORT),
    (0, b"\0\0\0\x0cjP", "a JPEG 2000 image", _EXPORT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image", _EXPORT),
    (0, b"II\xbc", "a JPEG XR image", _EXPORT),
    (0, b"8BPS", "a Photoshop document", "flatten it and " + _EXPORT),
    (0, b"gimp xcf", "a GIMP document", "flatten it and " + _EXPORT),
    (0, b"GIF8", "a GIF image", "save the frame to use as PNG"),
    (0, b"%PDF", "a PDF document", "save the page to use as PNG"),
    (0, b"<svg", "an SVG drawing", _EXPORT),
    (0, b"<?xml", "an XML file", _EXPORT),
    (0, b"v/1\x01", "an OpenEXR image", "map its tones and save it as 16-bit TIFF or PNG"),
    (0, b"#?R", "a Radiance HDR image", "map its tones and save it as 16-bit TIFF or PNG"),
    (0, b"\0\0\1\0", "an icon file", _EXPORT),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
)
# Raw formats that are TIFF files with a preview first.
_RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef")
    + (".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf")
    + (".srw", ".x3f")
)


def identify(start: bytes, name: str) -> str:
    """The format of a file from its first `SIGNATURE_BYTES`: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".

    Raises: ValueError for everything else, naming the file, what it is (as far as is known) and what to do.
    """
    if not start:
        raise ValueError(f"{name}: the file is empty (0 bytes); copy or download it again")
    for offset, magic, what, advice in UNSUPPORTED:
        if start.startswith(magic, offset):
            raise ValueError(f"{name}: {what} is not supported; {advice}")
    for offset, magic, form in _SUPPORTED:
        if start.startswith(magic, offset):
            if PurePath(name).suffix.lower() in _RAW_SUFFIXES:
                raise ValueError(f"{name}: {_RAW} ({form} inside) is not supported; {_DEVELOP}")
            return form
    raise ValueError(
        f"{name}: not an image (expected PNG, JPEG, WebP, TIFF or BMP; the file begins with {start[:8]!r})"
    )


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
