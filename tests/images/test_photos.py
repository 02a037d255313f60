"""Photographs keep every sample, and are stored turned as they were."""

import dataclasses
import io
import os

import numpy as np
import pytest
import tifffile
from image_samples import again, exif_bytes, raw_png, samples_of, saved, scene, tiff
from PIL import Image

from difflid_jax.images.codecs import directory
from difflid_jax.images.files import write_png
from difflid_jax.images.photos import decode_photo, encode_photo, read_photo, write_photo


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_and_tiff_keep_every_sample(channels, dtype):
    image = scene(channels, dtype)
    kind = {"photometric": "minisblack" if channels < 3 else "rgb"}
    alpha = {"extrasamples": ["unassalpha"], "planarconfig": "contig"} if channels % 2 == 0 else {}
    files = [raw_png(image)] + [
        tiff(image if alpha else image.squeeze(), **kind, **alpha, **layout)
        for layout in (
            {},
            {"compression": "zlib", "predictor": True},
            {"byteorder": ">"},
            {"bigtiff": True, "tile": (16, 32)},
        )
    ]
    for data in files:
        photo = decode_photo(data, "in")
        np.testing.assert_array_equal(samples_of(photo), image)
        out = encode_photo(photo)
        np.testing.assert_array_equal(samples_of(decode_photo(out, "out")), image)
        # The encoder against other decoders: Pillow reads 8 bits of a PNG's samples.
        if photo.format == "TIFF":
            np.testing.assert_array_equal(tifffile.imread(io.BytesIO(out)), image.squeeze())
        elif dtype == np.uint8:
            np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(out))).reshape(image.shape), image)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_are_restored_upright_and_stored_as_they_were(form, orientation):
    stored = scene(3)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    data = saved(stored, form, exif=exif_bytes(orientation, size=(7, 9)), **options)
    photo = decode_photo(data, "in")
    assert photo.pixels.shape[:2] == ((19, 33) if orientation < 5 else (33, 19))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    difference = photo.pixels[corner[orientation]].astype(int) - stored[0, 0]
    assert np.abs(difference).max() <= (12 if form == "JPEG" else 0)
    out = encode_photo(photo)
    np.testing.assert_allclose(
        decode_photo(out, "out").pixels, photo.pixels, atol=12 if form == "JPEG" else 0
    )
    with Image.open(io.BytesIO(out)) as image:
        exif = image.getexif()
        assert form == "TIFF" or image.size == (33, 19)
        assert exif.get(0x0112, 1) == orientation
        assert exif[0x010F] == "Camera"
        # The size was recorded wrongly: it is that of the stored pixels now.
        inner = exif.get_ifd(0x8769)
        assert (inner[0xA002], inner[0xA003]) == (33, 19)
        assert inner[0x927C] == b"maker note"
        assert exif.get_ifd(0x8825)[1] == "N"


def test_an_image_may_be_one_pixel():
    for data in (
        raw_png(scene(1, height=1, width=1)),
        tiff(scene(3, np.uint16, 1, 1)),
        raw_png(scene(3, height=1)),
    ):
        photo = decode_photo(data, "in")
        np.testing.assert_array_equal(again(photo).pixels, photo.pixels)


def test_writing_is_atomic_and_replaces_only_on_request(tmp_path, monkeypatch):
    (tmp_path / "in.png").write_bytes(raw_png(scene(3)))
    photo = read_photo(tmp_path / "in.png")
    with pytest.raises(FileExistsError):
        write_photo(tmp_path / "in.png", photo)
    write_photo(tmp_path / "in.png", photo, overwrite=True)
    # 255 bytes, of which few are characters; and a name that is not UTF-8.
    for name in (f"{'霧' * 83}a.png", os.fsdecode(b"\xfc\xff.png")):
        write_photo(tmp_path / name, photo)
        write_png(tmp_path / name, scene(3))
        np.testing.assert_array_equal(read_photo(tmp_path / name).pixels, scene(3))
        (tmp_path / name).unlink()
    broken = dataclasses.replace(photo, format="TIFF", kept={283: directory.Entry(4, 1, "x")})
    with pytest.raises(ValueError, match=r"out\.tif: cannot be written as TIFF .*remove the metadata"):
        write_photo(tmp_path / "out.tif", broken)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difflid_jax.images.photos.encode_photo", fail)
    with pytest.raises(OSError, match="No space"):
        write_photo(tmp_path / "out.png", photo)
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]
