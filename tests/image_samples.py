"""Small files of every kind, most of them written without the code under test."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from difflid_jax.images.photos import decode_photo, encode_photo

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


def scene(channels, dtype=np.uint8, height=19, width=33):
    """Smooth with some noise, so that every PNG filter wins somewhere."""
    y, x = np.mgrid[:height, :width]
    waves = [0.5 + 0.4 * np.sin(x / (4 + c) + c) * np.cos(y / (5 - c / 2)) for c in range(channels)]
    noise = np.random.default_rng(0).normal(0, 0.004, (height, width, channels))
    return (np.clip(np.stack(waves, -1) + noise, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def exif_bytes(orientation, size=(33, 19)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    inner = exif.get_ifd(0x8769)
    inner[0xA002], inner[0xA003], inner[0x927C] = *size, b"maker note"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def png_chunk(kind, data):
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def raw_png(samples, *, extra=b"", size=None):
    """A PNG with filter 0 everywhere, written without the code under test; `size` is a false claim."""
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">LLBBBBB", *(size or (width, height)), 8 * samples.itemsize, colour, 0, 0, 0)
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    body = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body + png_chunk(b"IEND", b"")


def samples_of(photo):
    pixels = photo.pixels if photo.pixels.ndim == 3 else photo.pixels[..., None]
    return pixels if photo.extra is None else np.dstack([pixels, photo.extra])


def saved(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def tiff(image, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, image, **{"photometric": "rgb", "metadata": None, **options})
    return file.getvalue()


def again(photo):
    return decode_photo(encode_photo(photo), "again")


def refusal(data, name="a"):
    with pytest.raises(ValueError, match=f"^{name}: ") as error:
        decode_photo(data, name)
    assert "\n" not in str(error.value)
    return str(error.value)
