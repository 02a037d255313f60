"""Users' photographs: read with everything in the file, written back in the same format.

JPEG, PNG, WebP, TIFF and BMP; 8 and 16 bit; grey, RGB, palette (becomes RGB), alpha and further channels.
Unlike `images.files`, which refuses what a data set must not contain, this module keeps what a photograph
came with: bit depth, alpha, EXIF, XMP, IPTC, text, resolution, colour profile, and how it was coded. It is
stored in its original orientation, so that its metadata stay valid; see docs/files.md for each format.
"""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from difflid_jax.atomic import atomic_write
from difflid_jax.images.codecs import Samples, Unsupported, bmp, jpeg, png, tiff, webp
from difflid_jax.images.formats import DECODING_ERRORS, SIGNATURE_BYTES, identify, reason

MAX_PIXELS = 250_000_000
# A file may be this many bytes larger than its pixels (16-bit RGBA), for metadata.
_METADATA_BYTES = 1 << 28

_CODECS = {"BMP": bmp, "JPEG": jpeg, "PNG": png, "TIFF": tiff, "WEBP": webp}

Pixels = (
    UInt8[np.ndarray, "h w 3"]
    | UInt8[np.ndarray, "h w"]
    | UInt16[np.ndarray, "h w 3"]
    | UInt16[np.ndarray, "h w"]
)


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    pixels: RGB or grey. extra: alpha and other channels, which are carried unchanged, or None. format: as
    `formats.identify` names it. orientation: how the file stores it (EXIF, 1 to 8). kept: what the codec
    needs to write a file like the one that was read. notes: what such a file cannot keep, for the user.
    """

    pixels: Pixels
    extra: Samples | None
    format: str
    orientation: int
    kept: Any
    notes: tuple[str, ...] = ()

    def with_pixels(self, pixels: Pixels) -> "Photo":
        """The same photograph with other pixels. Raises: ValueError for another shape or dtype."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise ValueError(
                f"expected pixels of shape {self.pixels.shape} and type {self.pixels.dtype}, "
                f"found {pixels.shape} and {pixels.dtype}"
            )
        return dataclasses.replace(self, pixels=pixels)


def read_photo(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photograph with everything in the file; EXIF orientation is applied to the pixels.

    Raises: ValueError naming the file, what was found and what to do, for a file that is not an image, is
    damaged, has more than `max_pixels`, or is of an unsupported kind. OSError if it cannot be opened.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        start = file.read(SIGNATURE_BYTES)
        identify(start, name)
        check_bytes(os.fstat(file.fileno()).st_size, name, max_pixels)
        data = start + file.read()
    return decode_photo(data, name, max_pixels=max_pixels)


def check_bytes(size: int, name: str, max_pixels: int) -> None:
    """Raise ValueError for a file of more bytes than a photograph of `max_pixels` needs."""
    most = 8 * max_pixels + _METADATA_BYTES
    if size > most:
        raise ValueError(
            f"{name}: a file of {size:,} bytes, more than the limit of {most:,} for images of "
            f"{max_pixels:,} pixels; raise max_pixels to read it"
        )


def decode_photo(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """`read_photo` for the bytes of a file; `name` stands for it in errors."""
    form = identify(data[:SIGNATURE_BYTES], name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = _CODECS[form].read(data, max_pixels)
    except Unsupported as error:
        raise ValueError(f"{name}: {error}") from None
    except MemoryError:
        raise
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{name}: a damaged or truncated {form} ({reason(error)}); copy or download it again"
        ) from error
    samples = _upright(decoded.samples, decoded.orientation)
    pixels = samples[..., 0] if decoded.colours == 1 else samples[..., :3]
    extra = samples[..., decoded.colours :]
    return Photo(
        np.ascontiguousarray(pixels),
        np.ascontiguousarray(extra) if extra.shape[2] else None,
        form,
        decoded.orientation,
        decoded.kept,
        decoded.notes,
    )


def write_photo(path: str | os.PathLike, photo: Photo, *, overwrite: bool = False) -> Path:
    """Write a photograph atomically (temporary name in the same folder, then rename).

    Raises: FileExistsError if `path` exists, unless `overwrite`; ValueError if it cannot be encoded.
    """
    path = Path(path)
    data = encode_photo(photo, os.fspath(path))
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return path


def encode_photo(photo: Photo, name: str = "the photograph") -> bytes:
    """The bytes of a file in the photograph's own format.

    Raises: ValueError if it cannot be encoded; `name` stands for it. OSError from the encoders.
    """
    pixels = photo.pixels if photo.pixels.ndim == 3 else photo.pixels[..., None]
    samples = pixels if photo.extra is None else np.concatenate([pixels, photo.extra], axis=-1)
    try:
        return _CODECS[photo.format].encode(_as_stored(samples, photo.orientation), photo.kept)
    except (MemoryError, OSError):
        raise
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{name}: cannot be written as {photo.format} ({reason(error)}); remove the metadata of the "
            "photograph and restore it again"
        ) from error


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """(H,W,C) or, for orientations from 5, (W,H,C)."""
    samples = samples.swapaxes(0, 1) if orientation >= 5 else samples
    return _mirrored(samples, orientation)


def _as_stored(samples: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `_upright`."""
    samples = _mirrored(samples, orientation)
    return np.ascontiguousarray(samples.swapaxes(0, 1) if orientation >= 5 else samples)


def _mirrored(samples: Samples, orientation: int) -> Samples:
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return samples[::rows, ::columns]
