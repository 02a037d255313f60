"""JPEG, PNG, WebP and BMP keep how they were coded, and their metadata."""

import io
import struct

import numpy as np
import pytest
from image_samples import ICC, XMP, again, exif_bytes, png_chunk, raw_png, saved, scene
from PIL import ExifTags, Image

from difflid_jax.images.photos import decode_photo, encode_photo


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_keeps_its_coding_alpha_and_metadata(lossless):
    image = scene(4)
    about = {"exif": exif_bytes(1), "icc_profile": ICC, "xmp": XMP}
    photo = decode_photo(saved(image, "WEBP", lossless=lossless, exact=True, **about), "in")
    assert photo.kept["lossless"] is lossless
    out = again(photo)
    assert out.kept == photo.kept
    np.testing.assert_array_equal(out.extra[..., 0], image[..., 3])
    if lossless:
        np.testing.assert_array_equal(out.pixels, image[..., :3])
    with Image.open(io.BytesIO(encode_photo(photo))) as stored:
        assert (stored.info["icc_profile"], stored.info["xmp"]) == (ICC, XMP)
        assert stored.getexif()[0x010F] == "Camera"


def test_bmp_keeps_every_sample_and_its_resolution():
    for mode in ("1", "L", "P", "RGB"):
        image = Image.fromarray(scene(3)).convert(mode)
        photo = decode_photo(saved(image, "BMP", dpi=(300, 300)), "in")
        expected = np.array(image.convert("RGB" if mode in ("P", "RGB") else "L"))
        np.testing.assert_array_equal(photo.pixels, expected)
        np.testing.assert_array_equal(again(photo).pixels, expected)
        assert round(Image.open(io.BytesIO(encode_photo(photo))).info["dpi"][0]) == 300


def test_jpeg_keeps_coding_and_metadata_but_not_a_coarse_quality():
    resources = (
        b"8BIM" + struct.pack(">HHL", 1036, 0, 4) + b"view" + b"8BIM" + struct.pack(">HHL", 1028, 0, 3)
    )
    resources = b"Photoshop 3.0\0" + resources + b"abc\0"
    app13 = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
    for quality in (30, 97):
        coding = {"quality": quality, "subsampling": 0, "progressive": True, "dpi": (300, 300)}
        about = {"exif": exif_bytes(1), "icc_profile": ICC, "xmp": XMP, "comment": b"a comment"}
        data = saved(scene(3, height=64, width=96), "JPEG", extra=app13, **coding, **about)
        photo = decode_photo(data, "in.jfif")
        with Image.open(io.BytesIO(data)) as old, Image.open(io.BytesIO(encode_photo(photo))) as new:
            if quality == 97:
                assert new.quantization == old.quantization
            assert all(np.all(np.less_equal(new.quantization[i], old.quantization[i])) for i in (0, 1))
            assert new.info["comment"] == b"a comment"
            assert (new.info["icc_profile"], new.info["xmp"]) == (ICC, XMP)
            assert new.info["dpi"] == (300, 300)
            assert new.info["progressive"]
            assert new.layer == old.layer
            # IPTC is kept, Photoshop's preview of the hazy image is not.
            assert new.info["photoshop"] == {1028: b"abc"}
            exif = new.getexif()
            assert exif[0x010F] == "Camera"
            assert exif.get_ifd(0x8769)[0x927C] == b"maker note"
            assert exif.get_ifd(0x8825)[1] == "N"


def test_exif_behind_the_pixels_of_a_png_turns_it_too():
    whole = saved(scene(3), "PNG", exif=exif_bytes(6))
    start = whole.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(whole[start : start + 4])
    behind = decode_photo(whole[:start] + whole[stop:-12] + whole[start:stop] + whole[-12:], "in")
    assert behind.pixels.shape == (33, 19, 3)
    np.testing.assert_array_equal(behind.pixels, decode_photo(whole, "in").pixels)


def test_a_preview_of_the_hazy_image_is_not_kept():
    tag = struct.Struct("<HHLL")
    first = struct.pack("<H", 1) + tag.pack(0x0112, 3, 1, 6) + struct.pack("<L", 8 + 18)
    preview = struct.pack("<H", 1) + tag.pack(0x0112, 3, 1, 6) + struct.pack("<L", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<L", 8) + first + preview
    data = saved(scene(3), "JPEG", exif=exif)
    with (
        Image.open(io.BytesIO(data)) as old,
        Image.open(io.BytesIO(encode_photo(decode_photo(data, "a")))) as new,
    ):
        assert old.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert not new.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert new.getexif()[0x0112] == 6


def test_png_carries_every_chunk_about_the_image(shared):
    about = [
        (b"iCCP", b"icc\0\0anything"),
        (b"tEXt", b"Author\0someone"),
        (b"pHYs", struct.pack(">LLB", 9, 9, 1)),
    ]
    about += [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), (b"prVt", b"private, safe to copy")]
    about += [(b"cICP", bytes(4)), (b"tIME", bytes(7)), (b"bKGD", bytes(6))]
    chunks = b"".join(png_chunk(*chunk) for chunk in about)
    unsafe = png_chunk(b"prVT", b"private, unsafe to copy") + png_chunk(b"sBIT", b"\5\5\5")
    out = encode_photo(decode_photo(raw_png(scene(3), extra=chunks + unsafe), "in"))
    assert out[33:].startswith(chunks)
    assert b"prVT" not in out and b"sBIT" not in out
    # Over 1 MB of text, XMP and profile.
    for name in ("long_text", "long_xmp", "long_icc"):
        data = (shared / "data" / "files" / f"{name}.png").read_bytes()
        kind = {"long_text": b"tEXtzTXt", "long_xmp": b"iTXt", "long_icc": b"iCCP"}[name]
        photo = decode_photo(data, name)
        assert any(chunk[0] in kind for chunk in photo.kept) and again(photo).kept == photo.kept


def test_transparent_colours_become_alpha():
    colours = scene(3)
    colours[3:7] = (10, 20, 30)
    image = Image.fromarray(colours)
    deep = scene(3, np.uint16)
    deep[5, 5] = (1, 2, 3)
    files = {
        "rgb": saved(image, "PNG", transparency=(10, 20, 30)),
        "palette": saved(image.quantize(16), "PNG", transparency=0),
        "deep": raw_png(deep, extra=png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))),
    }
    for name, data in files.items():
        photo = decode_photo(data, name)
        assert photo.pixels.shape == (19, 33, 3)
        expected = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))[..., 3:]
        if name == "deep":
            expected = np.where((deep == (1, 2, 3)).all(-1, keepdims=True), 0, 65535)
        np.testing.assert_array_equal(photo.extra, expected)
        assert 0 < (photo.extra == 0).sum() < photo.extra.size
        np.testing.assert_array_equal(again(photo).extra, photo.extra)
