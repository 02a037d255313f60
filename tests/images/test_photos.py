import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from difflid_jax.images.files import write_png
from difflid_jax.images.photos import Photo, read_photo, write_photo

RNG = np.random.default_rng(0)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


def scene(channels, dtype=np.uint8, height=19, width=33):
    """Smooth with some noise, so that every PNG filter wins somewhere."""
    y, x = np.mgrid[:height, :width]
    top = np.iinfo(dtype).max
    waves = [0.5 + 0.4 * np.sin(x / (4 + c) + c) * np.cos(y / (5 - c / 2)) for c in range(channels)]
    image = np.stack(waves, -1) + RNG.normal(0, 0.004, (height, width, channels))
    return (np.clip(image, 0, 1) * top).astype(dtype)


def exif_bytes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    inner = exif.get_ifd(0x8769)
    inner[0xA002], inner[0xA003], inner[0x927C] = 33, 19, b"maker note"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def raw_png(samples, *, extra=b"", size=None):
    """A PNG with filter 0 everywhere, written without the code under test; `size` is a false claim."""

    def chunk(kind, data):
        return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))

    height, width, channels = samples.shape
    bits = 8 * samples.itemsize
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">LLBBBBB", *(size or (width, height)), bits, colour, 0, 0, 0)
    rows = samples.astype(samples.dtype.newbyteorder(">"))
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def samples_of(photo: Photo):
    pixels = photo.pixels if photo.pixels.ndim == 3 else photo.pixels[..., None]
    return pixels if photo.alpha is None else np.dstack([pixels, photo.alpha])


def again(photo, path):
    write_photo(path, photo)
    return read_photo(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_every_sample(tmp_path, channels, dtype):
    image = scene(channels, dtype)
    (tmp_path / "in.png").write_bytes(raw_png(image))
    photo = read_photo(tmp_path / "in.png")
    np.testing.assert_array_equal(samples_of(photo), image)
    np.testing.assert_array_equal(samples_of(again(photo, tmp_path / "out.png")), image)
    # The encoder against another decoder: Pillow reads 8 bits of every sample.
    with Image.open(tmp_path / "out.png") as picture:
        if dtype == np.uint8:
            np.testing.assert_array_equal(np.array(picture).reshape(image.shape), image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "predictor": True}, {"byteorder": ">"}])
def test_tiff_keeps_every_sample(tmp_path, channels, dtype, layout):
    image = scene(channels, dtype)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    kind = "minisblack" if channels == 1 else "rgb"
    tifffile.imwrite(tmp_path / "in.tif", image.squeeze(), photometric=kind, **extra, **layout)
    photo = read_photo(tmp_path / "in.tif")
    np.testing.assert_array_equal(samples_of(photo), image)
    write_photo(tmp_path / "out.tif", photo)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        page = file.pages[0]
        assert (page.shape, page.dtype) == (image.squeeze().shape, image.dtype)
    np.testing.assert_array_equal(samples_of(read_photo(tmp_path / "out.tif")), image)


def test_inverted_16_bit_grey_tiff_is_read_as_it_looks(tmp_path):
    image = scene(1, np.uint16)[..., 0]
    tifffile.imwrite(tmp_path / "in.tif", 65535 - image, photometric="miniswhite")
    photo = read_photo(tmp_path / "in.tif")
    np.testing.assert_array_equal(photo.pixels, image)
    np.testing.assert_array_equal(again(photo, tmp_path / "out.tif").pixels, image)


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_keeps_its_coding_and_alpha(tmp_path, lossless):
    image = scene(4)
    about = {"exif": exif_bytes(1), "icc_profile": ICC, "xmp": XMP}
    Image.fromarray(image).save(tmp_path / "in.webp", lossless=lossless, exact=True, **about)
    photo = read_photo(tmp_path / "in.webp")
    assert photo.kept["lossless"] is lossless
    out = again(photo, tmp_path / "out.webp")
    assert out.kept["lossless"] is lossless
    np.testing.assert_array_equal(out.alpha, image[..., 3])
    if lossless:
        np.testing.assert_array_equal(out.pixels, image[..., :3])
    with Image.open(tmp_path / "out.webp") as picture:
        assert picture.info["icc_profile"] == ICC
        assert picture.getexif()[0x010F] == "Camera"
        assert b'tiff:Orientation="1"' in picture.info["xmp"]


def test_jpeg_keeps_coding_and_metadata_but_not_a_coarse_quality(tmp_path):
    picture = Image.fromarray(scene(3, height=64, width=96))
    for quality in (30, 97):
        coding = {"quality": quality, "subsampling": 0, "progressive": True, "dpi": (300, 300)}
        about = {"exif": exif_bytes(1), "icc_profile": ICC, "xmp": XMP, "comment": b"a comment"}
        picture.save(tmp_path / "in.jpg", **coding, **about)
        photo = read_photo(tmp_path / "in.jpg")
        write_photo(tmp_path / "out.jpg", photo, overwrite=True)
        with Image.open(tmp_path / "in.jpg") as old, Image.open(tmp_path / "out.jpg") as new:
            if quality == 97:
                assert new.quantization == old.quantization
            assert all(np.all(np.less_equal(new.quantization[i], old.quantization[i])) for i in (0, 1))
            assert new.info["comment"] == b"a comment"
            assert new.info["icc_profile"] == ICC
            assert new.info["dpi"] == (300, 300)
            assert new.info["progressive"]
            assert new.layer == old.layer
            assert b'tiff:Orientation="1"' in new.info["xmp"]
            exif = new.getexif()
            assert exif[0x010F] == "Camera"
            assert exif.get_ifd(0x8769)[0x927C] == b"maker note"
            assert exif.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("form", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, form, orientation):
    stored = scene(3)
    options = (
        {"lossless": True} if form == "webp" else {"quality": 100, "subsampling": 0} if form == "jpg" else {}
    )
    Image.fromarray(stored).save(tmp_path / f"in.{form}", exif=exif_bytes(orientation), **options)
    photo = read_photo(tmp_path / f"in.{form}")
    assert photo.pixels.shape[:2] == ((19, 33) if orientation < 5 else (33, 19))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    difference = photo.pixels[corner[orientation]].astype(int) - stored[0, 0]
    assert np.abs(difference).max() <= (12 if form == "jpg" else 0)
    write_photo(tmp_path / f"out.{form}", photo)
    assert read_photo(tmp_path / f"out.{form}").pixels.shape == photo.pixels.shape
    with Image.open(tmp_path / f"out.{form}") as picture:
        exif = picture.getexif()
        assert exif.get(0x0112, 1) == 1
        assert exif[0x010F] == "Camera"
        inner = exif.get_ifd(0x8769)
        shown = (33, 19) if orientation < 5 or form == "tif" else (19, 33)
        assert (inner[0xA002], inner[0xA003]) == shown


def test_exif_behind_the_pixels_of_a_png_turns_it_too(tmp_path):
    Image.fromarray(scene(3)).save(tmp_path / "before.png", exif=exif_bytes(6))
    whole = (tmp_path / "before.png").read_bytes()
    start = whole.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(whole[start : start + 4])
    (tmp_path / "behind.png").write_bytes(whole[:start] + whole[stop:-12] + whole[start:stop] + whole[-12:])
    before, behind = (read_photo(tmp_path / f"{name}.png") for name in ("before", "behind"))
    assert behind.pixels.shape == (33, 19, 3)
    np.testing.assert_array_equal(behind.pixels, before.pixels)
    np.testing.assert_array_equal(again(behind, tmp_path / "out.png").pixels, before.pixels)


def test_what_is_no_picture_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(ValueError, match="no picture"):
        read_photo(tmp_path / "huge.jpg")


def test_png_keeps_text_profile_and_resolution(tmp_path):
    text = PngInfo()
    text.add_text("Author", "someone")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(scene(3)).save(tmp_path / "in.png", pnginfo=text, icc_profile=ICC, dpi=(144, 144))
    write_photo(tmp_path / "out.png", read_photo(tmp_path / "in.png"))
    with Image.open(tmp_path / "out.png") as picture:
        picture.load()
        assert picture.text["Author"] == "someone"
        assert 'tiff:Orientation="1"' in picture.text["XML:com.adobe.xmp"]
        assert picture.info["icc_profile"] == ICC
        assert round(picture.info["dpi"][0]) == 144


def test_tiff_keeps_description_profile_and_resolution(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270], tags[315], tags[700] = "a street", "someone", XMP
    tags.tagtype[700] = 1
    Image.fromarray(scene(3)).save(tmp_path / "in.tif", tiffinfo=tags, icc_profile=ICC, dpi=(200, 200))
    write_photo(tmp_path / "out.tif", read_photo(tmp_path / "in.tif"))
    with Image.open(tmp_path / "out.tif") as picture:
        assert (picture.tag_v2[270], picture.tag_v2[315]) == ("a street", "someone")
        assert b'tiff:Orientation="1"' in picture.tag_v2[700]
        assert picture.info["icc_profile"] == ICC
        assert picture.info["dpi"] == (200, 200)


def test_tiff_tags_of_another_type_than_usual_are_kept(tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", scene(3), photometric="rgb")
    # A resolution is two numbers, RATIONAL; some programs write one, LONG.
    data = bytearray((tmp_path / "in.tif").read_bytes())
    struct.pack_into("<HHLL", data, data.index(struct.pack("<HHL", 283, 5, 1)), 283, 4, 1, 9)
    (tmp_path / "in.tif").write_bytes(data)
    photo = read_photo(tmp_path / "in.tif")
    assert photo.kept["tags"][283] == (4, 9)
    write_photo(tmp_path / "out.tif", photo)
    assert read_photo(tmp_path / "out.tif").kept["tags"][283] == (4, 9)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "in.png").write_bytes(raw_png(scene(3)))
    photo = dataclasses.replace(
        read_photo(tmp_path / "in.png"), format="TIFF", kept={"tags": {283: (4, "x")}}
    )
    with pytest.raises(ValueError, match=r"out\.tif: cannot be written as TIFF .* without its metadata"):
        write_photo(tmp_path / "out.tif", photo)
    assert not (tmp_path / "out.tif").exists()


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path):
    (tmp_path / "in.png").write_bytes(raw_png(scene(3)))
    # 255 bytes, of which few are characters.
    path = tmp_path / f"{'霧' * 83}a.png"
    write_photo(path, read_photo(tmp_path / "in.png"))
    write_png(path, scene(3))
    assert path.exists()


def test_a_preview_of_the_hazy_picture_is_not_kept(tmp_path):
    order, tag = "<", struct.Struct("<HHLL")
    first = struct.pack("<H", 1) + tag.pack(0x0112, 3, 1, 6) + struct.pack("<L", 8 + 18)
    preview = struct.pack("<H", 1) + tag.pack(0x0112, 3, 1, 6) + struct.pack("<L", 0)
    exif = b"Exif\0\0II*\0" + struct.pack(order + "L", 8) + first + preview
    Image.fromarray(scene(3)).save(tmp_path / "in.jpg", exif=exif)
    write_photo(tmp_path / "out.jpg", read_photo(tmp_path / "in.jpg"))
    with Image.open(tmp_path / "in.jpg") as old, Image.open(tmp_path / "out.jpg") as new:
        assert old.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert not new.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert new.getexif()[0x0112] == 1


def test_transparent_colours_become_alpha(tmp_path):
    colours = scene(3)
    colours[3:7] = (10, 20, 30)
    picture = Image.fromarray(colours)
    picture.save(tmp_path / "rgb.png", transparency=(10, 20, 30))
    picture.quantize(16).save(tmp_path / "palette.png", transparency=0)
    deep = scene(3, np.uint16)
    deep[5, 5] = (1, 2, 3)
    key = struct.pack(">HHH", 1, 2, 3)
    key = struct.pack(">L", 6) + b"tRNS" + key + struct.pack(">L", zlib.crc32(b"tRNS" + key))
    (tmp_path / "deep.png").write_bytes(raw_png(deep, extra=key))
    for name in ("rgb", "palette", "deep"):
        photo = read_photo(tmp_path / f"{name}.png")
        assert photo.pixels.shape == (19, 33, 3)
        with Image.open(tmp_path / f"{name}.png") as stored:
            expected = np.array(stored.convert("RGBA"))[..., 3]
        if name == "deep":
            expected = np.where((deep == (1, 2, 3)).all(-1), 0, 65535)
        np.testing.assert_array_equal(photo.alpha, expected)
        assert 0 < (photo.alpha == 0).sum() < photo.alpha.size
        np.testing.assert_array_equal(again(photo, tmp_path / f"{name}-out.png").alpha, photo.alpha)


def test_bad_photographs_are_refused_with_file_and_reason(tmp_path):
    good = io.BytesIO()
    Image.fromarray(scene(3, height=64, width=64)).save(good, "JPEG")
    planes = scene(3, np.uint16).transpose(2, 0, 1)
    layout = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "planar.tif", planes, **layout)
    tifffile.imwrite(tmp_path / "float.tif", scene(1)[..., 0].astype(np.float32))
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    second = Image.new("RGB", (8, 8), 9)
    Image.new("RGB", (8, 8)).save(tmp_path / "frames.webp", save_all=True, append_images=[second])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")
    files = {
        "truncated.jpg": good.getvalue()[:-300],
        "truncated.png": raw_png(scene(3, np.uint16))[:400],
        "empty.png": b"",
        "text.jpg": b"not a picture at all",
        "bomb.png": raw_png(scene(3), size=(90_000, 90_000)),
        "zero.png": raw_png(scene(3), size=(0, 5)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    reasons = {
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "empty.png": "empty",
        "text.jpg": "no picture",
        "bomb.png": "more than the limit",
        "zero.png": "zero size",
        "planar.tif": "layout",
        "float.tif": "floating-point",
        "cmyk.jpg": "CMYK",
        "frames.webp": "2 frames",
        "a.bmp": "BMP is not supported",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_photo(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_writing_never_leaves_half_a_file_nor_replaces_unasked(tmp_path, monkeypatch):
    (tmp_path / "in.png").write_bytes(raw_png(scene(3)))
    photo = read_photo(tmp_path / "in.png")
    with pytest.raises(FileExistsError):
        write_photo(tmp_path / "in.png", photo)
    write_photo(tmp_path / "in.png", photo, overwrite=True)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difflid_jax.images.writers.encode", fail)
    with pytest.raises(OSError, match="No space"):
        write_photo(tmp_path / "out.png", photo)
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_what_phones_and_scanners_write_besides_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(8))
    Image.fromarray(scene(3)).save(tmp_path / "b.tif", big_tiff=True)
    five = np.zeros((20, 30, 5), np.uint8)
    tifffile.imwrite(tmp_path / "c.tif", five, photometric="rgb", planarconfig="contig")
    for name, said in (("a.jpg", "HEIC"), ("b.tif", "BigTIFF"), ("c.tif", "5 channels")):
        with pytest.raises(ValueError, match=f"{name}: .*{said}"):
            read_photo(tmp_path / name)
