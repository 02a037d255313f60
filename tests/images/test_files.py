"""Images are read exactly or refused by name; nothing is written in halves."""

import io
import random
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from difflid_jax.images.files import Header, check_image, decode_image, read_header, read_image, write_png
from difflid_jax.images.sheets import contact_sheet


def photo(height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def image_size(path, **limits):
    header = read_header(path, **limits)
    return header.height, header.width


def raw_png(width, height, bits, colour_type, rows):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_png_keeps_every_pixel(tmp_path):
    image = photo()
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    np.testing.assert_array_equal(decode_image((tmp_path / "a.png").read_bytes(), "a"), image)
    assert image_size(tmp_path / "a.png") == (24, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_real_images_decode_as_pillow_decodes_them(shared):
    for name in ("sots_indoor_dev/gt/1400.png", "i_haze_dev/hazy/1_indoor_hazy.jpg"):
        path = shared / "data" / name
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image))
            assert image_size(path) == image.size[::-1]


def test_grey_and_opaque_alpha_convert_without_loss(tmp_path):
    image = photo()
    grey = image[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))
    opaque = np.dstack([image, np.full_like(grey, 255)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_image(tmp_path / "opaque.png"), image)
    assert read_header(tmp_path / "opaque.png").kind == "alpha"
    assert read_header(tmp_path / "grey.png").kind == "grey"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(photo(24, 40))
    for name in ("a.jpg", "a.tif", "a.png"):
        stored.save(tmp_path / name, exif=exif)
        shown = read_image(tmp_path / name)
        assert shown.shape[:2] == image_size(tmp_path / name)
        assert shown.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    np.testing.assert_array_equal(shown[corner[orientation]], np.asarray(stored)[0, 0])


def test_an_image_whose_exif_is_broken_is_read_as_it_is_stored(tmp_path):
    image = Image.fromarray(photo(24, 40))
    # Neither II nor MM.
    image.save(tmp_path / "a.jpg", dpi=(72, 72), exif=b"Exif\0\0XX\0*\0\0\0\x08" + bytes(20))
    image.save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))


def bad_images(folder):
    image = photo()
    good = folder / "good.png"
    write_png(good, image)
    data = good.read_bytes()
    Image.fromarray(image).save(folder / "good.jpg")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    grey16 = (np.arange(24 * 32).reshape(24, 32) * 80).astype(np.uint16)
    alpha = np.dstack([image, photo(seed=1)[..., 0]])
    files = {
        "truncated.png": data[: len(data) // 2],
        "truncated.jpg": (folder / "good.jpg").read_bytes()[:-200],
        "broken.png": bytes(flipped),
        "text.png": b"hazy but not an image\n",
        "empty.png": b"",
        "zero.png": raw_png(0, 5, 8, 2, b""),
        "bomb.png": raw_png(60_000, 60_000, 8, 2, b"\0" * 100),
        "rgb16.png": raw_png(16, 16, 16, 2, bytes(16 * (1 + 16 * 6))),
        "page.gif": b"GIF89a" + bytes(30),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.fromarray(grey16).save(folder / "grey16.png")
    Image.fromarray(image).quantize(16).save(folder / "palette.png")
    Image.fromarray(image).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(alpha).save(folder / "alpha.png")
    Image.fromarray(image).save(
        folder / "frames.png", save_all=True, append_images=[Image.fromarray(photo(seed=2))]
    )
    return {
        "truncated.png": "truncated",
        "truncated.jpg": "truncated",
        "broken.png": "damaged",
        "text.png": "not an image",
        "empty.png": "empty",
        "zero.png": "zero size",
        "bomb.png": "60000×60000",
        "rgb16.png": "16-bit",
        "grey16.png": "16-bit",
        "page.gif": "a GIF image is not supported",
        "palette.png": "palette",
        "cmyk.jpg": "CMYK",
        "alpha.png": "transparent",
        "frames.png": "several-frame",
    }


def test_bad_images_are_refused_with_file_and_reason(tmp_path):
    for name, reason in bad_images(tmp_path).items():
        for read in (read_image, check_image):
            with pytest.raises(ValueError, match=reason) as refusal:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(refusal.value)
        if name != "broken.png":  # damage in the middle is found by decoding alone
            with pytest.raises(ValueError, match=reason):
                check_image(tmp_path / name, thorough=False)


def test_sound_files_are_not_called_damaged(shared):
    for name in ("long_text.png", "long_xmp.png", "long_icc.png"):
        path = shared / "data" / "files" / name
        assert check_image(path, thorough=False) == Header(48, 64, "PNG", "rgb")
        assert read_image(path).shape == (48, 64, 3)
    for name, kind in (
        ("extra_channel.tif", "4-channel"),
        ("twelve_bit.jpg", "12-bit"),
        ("float32.tif", "unsupp"),
    ):
        with pytest.raises(ValueError, match=kind) as refusal:
            read_image(shared / "data" / "files" / name)
        assert "damaged" not in str(refusal.value) and "convert it" in str(refusal.value)


def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path):
    chance = random.Random(0)
    images = []
    for form, mode in (
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("TIFF", "RGBA"),
        ("BMP", "L"),
    ):
        buffer = io.BytesIO()
        Image.fromarray(photo()).convert(mode).save(buffer, form)
        images.append(buffer.getvalue())
    outcomes = Counter()
    for _ in range(1200):
        data = bytearray(chance.choice(images))
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(min(len(data), chance.choice((64, len(data)))))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(1, len(data)) :]
        try:
            image = decode_image(bytes(data), "mutated", max_pixels=10**6)
        except ValueError as error:
            assert str(error).startswith("mutated: ") and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert image.dtype == np.uint8 and image.shape[2] == 3
            outcomes["read"] += 1
    assert min(outcomes.values()) > 100


def test_size_limit_is_checked_before_decoding_and_can_be_moved(tmp_path):
    write_png(tmp_path / "a.png", photo())
    with pytest.raises(ValueError, match="768 pixels, more than the limit of 700"):
        read_image(tmp_path / "a.png", max_pixels=700)
    (tmp_path / "large.png").write_bytes(raw_png(20_000, 10_000, 8, 2, b"\0" * 100))
    assert image_size(tmp_path / "large.png", max_pixels=10**9) == (10_000, 20_000)


def test_missing_file_and_folder_are_os_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.png"
    write_png(target, photo())
    before = target.read_bytes()

    def full(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_png(target, photo(seed=1))
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_write_refuses_what_is_no_image(tmp_path):
    for array in (photo().astype(np.float32), photo()[None], photo()[..., :2], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            write_png(tmp_path / "a.png", array)
    assert not list(tmp_path.iterdir())


def test_contact_sheet_shows_every_image_in_its_place():
    red, blue = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 3), np.float32)
    red[..., 0], blue[..., 2] = 255, 1.0
    sheet = contact_sheet([[red, blue], [blue]], labels=["hazy", "clean"], gap=10)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 10 + 30 + 10 + 30 + 10
    assert (sheet[:, 10:40] == (255, 0, 0)).all(-1).sum() == 600
    assert (sheet[:, 10:40] == (0, 0, 255)).all(-1).sum() == 600
    assert (sheet[:, 50:80] == (0, 0, 255)).all(-1).sum() == 600
    wide = contact_sheet([[np.zeros((100, 1000, 3), np.uint8)]], labels=[["a caption"]], max_width=200, gap=0)
    assert wide.shape[1] == 200


def test_contact_sheet_refuses_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="3 headings for a contact sheet of 1 columns"):
        contact_sheet([[photo()]], labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([[photo()]], labels=[["a", "b"]])
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
