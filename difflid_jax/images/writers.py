"""Encoders for restored photographs: each takes a `Photo` and returns the bytes of a file.

Pillow writes JPEG and WebP. PNG and TIFF are written here, because Pillow has no 16-bit colour, and so that
all metadata chunks and tags go over.
"""

import functools
import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, TiffImagePlugin

if TYPE_CHECKING:
    from difflid_jax.images.photos import Photo

# A restored picture is coded at least this well, whatever its source was: what the haze hid from a coarse
# quantiser is worth keeping.
LEAST_QUALITY = 92
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}


def encode(photo: "Photo") -> bytes:
    """The bytes of a file in `photo.format`."""
    return {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff}[photo.format](photo)


def _jpeg(photo: "Photo") -> bytes:
    kept = photo.kept
    return _by_pillow(
        photo,
        qtables=_finer(kept["quantization"]),
        subsampling=kept["subsampling"],
        progressive=kept["progressive"],
        dpi=kept["dpi"],
        extra=kept["segments"],
    )


def _webp(photo: "Photo") -> bytes:
    kept = photo.kept
    # `exact` keeps the colours under full transparency.
    return _by_pillow(
        photo,
        lossless=kept["lossless"],
        quality=80 if kept["lossless"] else LEAST_QUALITY,
        exact=True,
        exif=kept["exif"],
        icc_profile=kept["icc_profile"],
        xmp=kept["xmp"],
    )


def _by_pillow(photo: "Photo", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_samples(photo).squeeze(-1) if _channels(photo) == 1 else _samples(photo)).save(
        file, photo.format, **options
    )
    return file.getvalue()


def _finer(tables: dict[int, list[int]]) -> list[list[int]]:
    """The file's own quantisation, no coarser than `LEAST_QUALITY`."""
    luma, chroma = _quantization(LEAST_QUALITY)
    ours = [chroma if i else luma for i in range(len(tables))]
    # 16-bit tables would need extended sequential coding: the minimum is always below 256.
    return [
        [min(pair) for pair in zip(theirs, mine, strict=True)]
        for theirs, mine in zip((tables[i] for i in sorted(tables)), ours, strict=True)
    ]


@functools.cache
def _quantization(quality: int) -> tuple[list[int], list[int]]:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return tuple(picture.quantization[i] for i in (0, 1))


def _png(photo: "Photo") -> bytes:
    samples = _samples(photo)
    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    header = struct.pack(">LLBBBBB", width, height, bits, _PNG_COLOUR[channels], 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header)]
    parts += [_chunk(kind, data) for kind, data in photo.kept["chunks"]]
    parts += [_chunk(b"IDAT", _png_data(samples)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _png_data(samples: np.ndarray) -> bytes:
    """Rows filtered as they compress best by the usual guess (least sum of absolute differences)."""
    pixel = samples.shape[2] * samples.itemsize
    rows = samples.astype(samples.dtype.newbyteorder(">"), copy=False).reshape(samples.shape[0], -1)
    rows = rows.view(np.uint8)
    compressor, parts = zlib.compressobj(6), []
    above = np.zeros(rows.shape[1] + pixel, np.uint8)
    for row in rows:
        # `pixel` zeros stand before every row, as the format has it.
        current = np.concatenate([np.zeros(pixel, np.uint8), row])
        left, up, corner = current[:-pixel], above[pixel:], above[:-pixel]
        mean = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
        filtered = (row, row - left, row - up, row - mean, row - _paeth(left, up, corner))
        cost = [np.abs(candidate.view(np.int8).astype(np.int16)).sum() for candidate in filtered]
        best = int(np.argmin(cost))
        parts.append(compressor.compress(bytes((best,)) + filtered[best].tobytes()))
        above = current
    return b"".join(parts) + compressor.flush()


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    near_up = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, near_up)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def _tiff(photo: "Photo") -> bytes:
    samples = _samples(photo)
    height, width, channels = samples.shape
    colours = channels - (photo.alpha is not None)
    data = _tiff_data(samples)
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    structure = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (8 * samples.itemsize,) * channels,
        TiffImagePlugin.COMPRESSION: 8,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 1 if colours == 1 else 2,
        TiffImagePlugin.STRIPOFFSETS: 0,
        TiffImagePlugin.SAMPLESPERPIXEL: channels,
        TiffImagePlugin.ROWSPERSTRIP: height,
        TiffImagePlugin.STRIPBYTECOUNTS: len(data),
        TiffImagePlugin.PLANAR_CONFIGURATION: 1,
        TiffImagePlugin.PREDICTOR: 2,
    }
    if channels > colours:
        structure[TiffImagePlugin.EXTRASAMPLES] = 2
    for tag, (kind, value) in photo.kept["tags"].items():
        # Before the value: Pillow turns it into what it takes to be the tag's type.
        if kind is not None:
            directory.tagtype[tag] = kind
        directory[tag] = value
    for tag, value in structure.items():
        directory[tag] = value
        if tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS):
            directory.tagtype[tag] = 4
    file = io.BytesIO()
    directory.save(file)
    file.write(data)
    return file.getvalue()


def _tiff_data(samples: np.ndarray) -> bytes:
    """One strip, compressed by deflate after differences along the rows."""
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    return zlib.compress(differences.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes(), 6)


def _samples(photo: "Photo") -> np.ndarray:
    """(H,W,C): grey, grey and alpha, RGB or RGBA."""
    pixels = photo.pixels if photo.pixels.ndim == 3 else photo.pixels[..., None]
    return pixels if photo.alpha is None else np.concatenate([pixels, photo.alpha[..., None]], axis=-1)


def _channels(photo: "Photo") -> int:
    return (1 if photo.pixels.ndim == 2 else 3) + (photo.alpha is not None)
