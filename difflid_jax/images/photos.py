"""Users' photographs: read with all they say about themselves, written back in the same kind.

JPEG, PNG, WebP and TIFF; 8 and 16 bit; grey, colour, palette (becomes colour), alpha. Unlike data/images.py,
which refuses what a data set should not contain, this room keeps what a photograph came with: bit depth,
alpha, EXIF, XMP, IPTC, text, resolution and colour profile, and how it was coded.
"""

import contextlib
import dataclasses
import io
import os
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from difflid_jax.atomic import atomic_write
from difflid_jax.images import metadata as photo_metadata
from difflid_jax.images import writers as photo_writers
from difflid_jax.images.files import DECODING_ERRORS, UPRIGHT, Header, open_picture, orientation_of, reason

EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff"))
MAX_PIXELS = 250_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")

# Decoding 16-bit colour: Pillow has no such mode, but its decoders can deliver the high or the low bytes.
_LOW_BYTES = {"L": "B", "B": "L", "N": {"little": "B", "big": "L"}[sys.byteorder]}
_PLAIN_MODES = {
    "RGB": "RGB",
    "L": "L",
    "LA": "LA",
    "RGBA": "RGBA",
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
}


@dataclasses.dataclass(frozen=True)
class Photo:
    """An upright photograph: pixels (H,W,3) RGB or (H,W) grey and alpha (H,W) or None, uint8 or uint16.

    `kept` is what the encoder of `format` needs to write a file like the one that was read.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str
    kept: dict[str, Any]

    def with_pixels(self, pixels: np.ndarray) -> "Photo":
        """The same photograph with other pixels. Raises ValueError for another shape or dtype."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise ValueError(
                f"expected pixels of shape {self.pixels.shape} and type {self.pixels.dtype}, "
                f"found {pixels.shape} and {pixels.dtype}"
            )
        return dataclasses.replace(self, pixels=pixels)


def read_photo(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photograph and all that belongs to it; EXIF orientation is applied.

    Raises ValueError naming the file, what was found and what to do: empty, truncated or damaged, no
    picture, zero size, more than `max_pixels`, several frames, CMYK, LAB, floating point and other kinds
    that would have to be changed. OSError where the file cannot be opened.
    """
    name = os.fspath(path)
    # Pillow warns about odd metadata; what matters about a picture is an error already.
    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")
        # Before memory is taken for all of it.
        open_picture(file, name, max_pixels)
        file.seek(0)
        data = file.read()
        picture, header = open_picture(io.BytesIO(data), name, max_pixels)
        form = "JPEG" if header.format == "MPO" else header.format
        _refuse_other_kinds(picture, header, form, name)
        try:
            if header.kind == "16-bit":
                samples = _decode_deep(picture, data, name)
            else:
                samples = _decode(picture)
            # A PNG may hold its EXIF behind the pixels.
            orientation = orientation_of(picture) if form == "PNG" else header.orientation
            if orientation in UPRIGHT:
                samples = _upright(samples, orientation)
            # The open picture lost its metadata when it was decoded as another mode: look again.
            fresh, _ = open_picture(io.BytesIO(data), name, max_pixels)
            kept = {"JPEG": _keep_jpeg, "PNG": _keep_png, "WEBP": _keep_webp, "TIFF": _keep_tiff}[form](
                fresh, data, orientation
            )
        except _Unsupported as error:
            raise ValueError(f"{name}: {error}") from error
        except DECODING_ERRORS as error:
            raise ValueError(
                f"{name}: a damaged or truncated {form} ({reason(error)}); copy or download it again"
            ) from error
    channels = samples.shape[2]
    pixels = samples[..., 0] if channels < 3 else samples[..., :3]
    alpha = None if channels in (1, 3) else np.ascontiguousarray(samples[..., -1])
    return Photo(np.ascontiguousarray(pixels), alpha, form, kept)


def write_photo(path: str | os.PathLike, photo: Photo, *, overwrite: bool = False) -> Path:
    """Write a photograph in one piece: under a temporary name beside `path`, then renamed.

    Raises FileExistsError where `path` is there already, unless `overwrite`; ValueError where the metadata
    that the photograph came with cannot be written.
    """
    path = Path(path)
    try:
        data = photo_writers.encode(photo)
    except (MemoryError, OSError):
        raise
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{path}: cannot be written as {photo.format} ({reason(error)}); save the photograph without "
            "its metadata and restore that"
        ) from error
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)
    return path


class _Unsupported(Exception):
    pass


def _refuse_other_kinds(picture: Image.Image, header: Header, form: str, name: str) -> None:
    if form not in FORMATS:
        raise ValueError(f"{name}: {form} is not supported (expected JPEG, PNG, WebP or TIFF); convert it")
    if header.kind == "several-frame":
        raise ValueError(
            f"{name}: a picture of {picture.n_frames} frames or pages (expected one); save the one to restore"
        )
    channels = picture.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) if form == "TIFF" else 1
    if channels > 4:
        raise ValueError(f"{name}: a TIFF of {channels} channels (expected up to 4); save its RGB alone")
    deep = header.kind == "16-bit"
    if (deep and picture.mode in ("F", "I")) or (not deep and picture.mode not in _PLAIN_MODES):
        kind = {"F": "floating-point", "I": "32-bit or signed"}.get(picture.mode, picture.mode)
        raise ValueError(
            f"{name}: a {kind} picture (expected 8 or 16-bit grey or RGB, with or without alpha); "
            "convert it to RGB first"
        )


def _decode(picture: Image.Image) -> np.ndarray:
    """8-bit samples (H,W,C)."""
    mode = _PLAIN_MODES[picture.mode]
    if "transparency" in picture.info:
        mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
    if picture.mode in ("1", "La", "RGBa"):
        picture = picture.convert({"1": "L", "La": "LA", "RGBa": "RGBA"}[picture.mode])
    # From a palette with transparency only RGBA is defined.
    samples = np.array(picture if picture.mode == mode else picture.convert(mode))
    return samples[..., None] if samples.ndim == 2 else samples


def _decode_deep(picture: Image.Image, data: bytes, name: str) -> np.ndarray:
    """16-bit samples (H,W,C), uint16."""
    key = picture.info.get("transparency") if picture.format == "PNG" else None
    raw = _raw_mode(picture)
    if picture.mode.startswith("I;16"):
        if raw not in ("I;16", "I;16B", "I;16N", "I;16L"):
            raise _Unsupported(f"samples of kind {raw} (expected 8 or 16 bit); convert it to 16 bit first")
        inverted = picture.format == "TIFF" and picture.tag_v2.get(262) == 0
        samples = np.array(picture).astype(np.uint16)[..., None]
        samples = 65535 - samples if inverted else samples
    elif raw == "LA;16B":
        # Rows of such a PNG are laid out like 8-bit RGBA: high and low byte of grey, then of alpha.
        picture._mode = "RGBA"
        _set_raw_mode(picture, "RGBA")
        samples = np.array(picture).view(">u2").astype(np.uint16)
    elif raw[:-1] in ("RGB;16", "RGBA;16") and _interleaved(picture):
        again, _ = open_picture(io.BytesIO(data), name, picture.width * picture.height)
        _set_raw_mode(again, raw[:-1] + _LOW_BYTES[raw[-1]])
        samples = np.array(picture).astype(np.uint16) << 8 | np.array(again)
    else:
        raise _Unsupported(
            f"16-bit samples in the layout {raw} (expected grey or RGB, interleaved, with or without "
            "straight alpha); convert it to a 16-bit PNG first"
        )
    if key is not None:
        opaque = (samples != np.array(key, np.uint16)).any(axis=-1, keepdims=True)
        samples = np.concatenate([samples, np.where(opaque, 65535, 0).astype(np.uint16)], axis=-1)
    return samples


def _interleaved(picture: Image.Image) -> bool:
    return picture.format != "TIFF" or picture.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 1


def _raw_mode(picture: Image.Image) -> str:
    arguments = picture.tile[0].args
    return arguments if isinstance(arguments, str) else arguments[0]


def _set_raw_mode(picture: Image.Image, raw: str) -> None:
    picture.tile = [
        tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))
        for tile in picture.tile
    ]


def _upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    samples = samples.swapaxes(0, 1) if orientation >= 5 else samples
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return samples[::rows, ::columns]


def _keep_jpeg(picture: Image.Image, data: bytes, orientation: int) -> dict[str, Any]:
    return {
        "quantization": dict(picture.quantization),
        "subsampling": JpegImagePlugin.get_sampling(picture),
        "progressive": bool(picture.info.get("progressive")),
        "dpi": picture.info.get("dpi", (0, 0)),
        "segments": photo_metadata.jpeg_segments(picture.applist, orientation),
    }


def _keep_png(picture: Image.Image, data: bytes, orientation: int) -> dict[str, Any]:
    return {"chunks": photo_metadata.png_chunks(data, orientation)}


def _keep_webp(picture: Image.Image, data: bytes, orientation: int) -> dict[str, Any]:
    return {
        "lossless": photo_metadata.is_lossless_webp(data),
        "exif": photo_metadata.upright_exif(picture.info.get("exif", b""), orientation),
        "icc_profile": picture.info.get("icc_profile", b""),
        "xmp": photo_metadata.upright_xmp(picture.info.get("xmp", b"")),
    }


def _keep_tiff(picture: Image.Image, data: bytes, orientation: int) -> dict[str, Any]:
    tags = {
        tag: (picture.tag_v2.tagtype.get(tag), picture.tag_v2[tag])
        for tag in photo_metadata.TIFF_TAGS
        if tag in picture.tag_v2
    }
    exif = picture.getexif()
    for tag in (photo_metadata.EXIF_IFD, photo_metadata.GPS_IFD):
        with contextlib.suppress(struct.error, KeyError):
            if inner := dict(exif.get_ifd(tag)):
                tags[tag] = (None, inner)
    if 700 in tags and isinstance(tags[700][1], bytes):
        tags[700] = (tags[700][0], photo_metadata.upright_xmp(tags[700][1]))
    return {"tags": tags}
