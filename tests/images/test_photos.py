"""Photographs keep everything they came with, or the file is refused by name."""

import dataclasses
import io
import os
import random
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from difflid_jax.images.codecs import directory
from difflid_jax.images.files import write_png
from difflid_jax.images.photos import decode_photo, encode_photo, read_photo, write_photo

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


def test_tiffs_of_other_layouts_are_read_as_they_look():
    grey, colour = scene(1, np.uint16)[..., 0], scene(3, np.uint16)
    inverted = decode_photo(tiff(65535 - grey, photometric="miniswhite"), "in")
    planar = decode_photo(tiff(colour.transpose(2, 0, 1), planarconfig="separate", compression="zlib"), "in")
    palette = decode_photo(saved(Image.fromarray(scene(3)).quantize(16), "TIFF"), "in")
    bits = decode_photo(saved(Image.fromarray(scene(3)).convert("1"), "TIFF", compression="group4"), "in")
    jpeg = decode_photo(saved(scene(3), "TIFF", compression="jpeg", quality=100), "in")
    np.testing.assert_array_equal(inverted.pixels, grey)
    np.testing.assert_array_equal(again(inverted).pixels, grey)
    np.testing.assert_array_equal(planar.pixels, colour)
    np.testing.assert_array_equal(
        palette.pixels, np.array(Image.fromarray(scene(3)).quantize(16).convert("RGB"))
    )
    np.testing.assert_array_equal(bits.pixels, np.array(Image.fromarray(scene(3)).convert("1").convert("L")))
    # JPEG's own loss.
    assert np.abs(jpeg.pixels.astype(int) - scene(3)).max() < 30


def test_further_channels_of_a_tiff_are_carried(shared):
    for data in (
        (shared / "data" / "files" / "extra_channel.tif").read_bytes(),
        tiff(scene(5, np.uint16), extrasamples=["unassalpha", "unspecified"], planarconfig="contig"),
    ):
        photo = decode_photo(data, "in")
        stored = tifffile.imread(io.BytesIO(data))
        np.testing.assert_array_equal(photo.extra, stored[..., 3:])
        black = encode_photo(photo.with_pixels(np.zeros_like(photo.pixels)))
        with tifffile.TiffFile(io.BytesIO(data)) as old, tifffile.TiffFile(io.BytesIO(black)) as new:
            assert new.pages[0].extrasamples == old.pages[0].extrasamples
            np.testing.assert_array_equal(new.pages[0].asarray()[..., 3:], stored[..., 3:])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_alpha_becomes_straight(dtype):
    top = np.iinfo(dtype).max
    straight = np.full((4, 4, 4), (0.8 * top, 0.4 * top, 0.2 * top, top // 2), dtype)
    stored = straight.copy()
    stored[..., :3] //= 2
    photo = decode_photo(tiff(stored, extrasamples=["assocalpha"]), "in")
    # The multiplication loses one bit.
    np.testing.assert_allclose(photo.pixels.astype(int), straight[..., :3].astype(int), atol=2)
    np.testing.assert_array_equal(photo.extra, straight[..., 3:])
    with tifffile.TiffFile(io.BytesIO(encode_photo(photo))) as file:
        assert file.pages[0].extrasamples == (2,)


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


def test_tiff_carries_tags_as_bytes(shared):
    data = (shared / "data" / "files" / "utf8_text.tif").read_bytes()
    out = encode_photo(decode_photo(data, "in"))
    with tifffile.TiffFile(io.BytesIO(out)) as file:
        tags = file.pages[0].tags
        assert [tags[code].value for code in (270, 315, 33432)] == [
            "Nebel über Köln",
            "Søren Kjær",
            "© 2021 Søren Kjær",
        ]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700], tags[50000], tags[34675] = XMP, "of a private tag", ICC
    tags.tagtype[700] = 1
    tags[0x8769] = {0x9286: b"UNICODE\0\xfc\x00"}
    data = saved(scene(3), "TIFF", tiffinfo=tags, dpi=(200, 200))
    # A resolution is two numbers, RATIONAL; some programs write one, LONG.
    data = bytearray(data)
    struct.pack_into("<HHLL", data, data.index(struct.pack("<HHL", 283, 5, 1)), 283, 4, 1, 9)
    photo = decode_photo(bytes(data), "in")
    assert photo.kept[283][:3] == (4, 1, struct.pack("<L", 9))
    out = again(photo)

    def values(tags):
        return {tag: values(entry) if isinstance(entry, dict) else entry[:3] for tag, entry in tags.items()}

    assert values(out.kept) == values(photo.kept)
    assert {700, 50000, 34675, 282, 283, 0x8769} <= out.kept.keys()


def test_odd_tags_of_a_tiff_do_not_matter_for_its_pixels():
    with tifffile.TiffFile(io.BytesIO(data := tiff(scene(3)))) as file:
        position, unknown = file.pages[0].tags[296].offset, struct.pack("<HHLL", 60001, 99, 1, 7)
    unit, orientation = struct.pack("<HHLHH", 296, 3, 1, 9, 0), struct.pack("<HHLHH", 274, 3, 1, 9, 0)
    for entry in (unknown, unit, orientation):
        photo = decode_photo(data[:position] + entry + data[position + 12 :], "in")
        np.testing.assert_array_equal(again(photo).pixels, scene(3))
        assert photo.notes == (("its damaged or unknown tags (1)",) if entry == unknown else ())
    # A link to nowhere behind the only directory.
    end = data.index(struct.pack("<H", len(tifffile.TiffFile(io.BytesIO(data)).pages[0].tags)), 8)
    link = end + 2 + 12 * int.from_bytes(data[end : end + 2], "little")
    odd = data[:link] + b"\xff\xff\xff\x7f" + data[link + 4 :]
    np.testing.assert_array_equal(decode_photo(odd, "in").pixels, scene(3))


def test_an_image_may_be_one_pixel():
    for data in (
        raw_png(scene(1, height=1, width=1)),
        tiff(scene(3, np.uint16, 1, 1)),
        raw_png(scene(3, height=1)),
    ):
        photo = decode_photo(data, "in")
        np.testing.assert_array_equal(again(photo).pixels, photo.pixels)


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


def test_what_an_output_lacks_is_noted():
    mpf = b"\xff\xe2" + struct.pack(">H", 6) + b"MPF\0"
    assert "further images" in decode_photo(saved(scene(3), "JPEG", extra=mpf), "a").notes[0]
    video = saved(scene(3), "JPEG", progressive=True) + b"ftyp" + bytes(96)
    assert decode_photo(video, "a").notes == ("the 100 bytes behind its image",)
    motion = saved(scene(3), "JPEG", xmp=b'<a GCamera:MotionPhoto="1"/>')
    assert "motion photo" in decode_photo(motion, "a").notes[0]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        layers = [(37724, 7, 4, b"8BPS", True)]
        writer.write(scene(3), photometric="rgb", metadata=None, extratags=layers)
        writer.write(scene(3)[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    photo = decode_photo(file.getvalue(), "a")
    assert [note.split()[-1] for note in photo.notes] == ["(1)", "layers"]
    np.testing.assert_array_equal(photo.pixels, scene(3))
    assert not again(photo).notes


def test_a_preview_is_never_restored_for_the_photograph():
    small, large = scene(3), scene(3, height=40, width=70)

    def pages(*images, **options):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for image, kind in images:
                writer.write(image, photometric="rgb", metadata=None, subfiletype=kind, **options)
                options = {}
        return file.getvalue()

    assert "smaller than another one in it (70×40)" in refusal(pages((small, 0), (large, 0)))
    assert "smaller than another one in it (70×40)" in refusal(pages((small, 1), (large, 0), subifds=1))
    assert "marked as a preview" in refusal(pages((small, 1)))
    assert "2 pages" in refusal(pages((large, 0), (small, 0)))
    assert "camera raw" in refusal(tiff(small, extratags=[(50706, 1, 4, bytes((1, 4, 0, 0)), True)]))
    assert "camera raw" in refusal(tiff(scene(1, np.uint16)[..., 0], photometric=32803))
    assert "camera raw file (TIFF inside)" in refusal(tiff(small), "a.NEF")
    assert "2 frames" in refusal(
        saved(small, "WEBP", save_all=True, append_images=[Image.new("RGB", (33, 19))])
    )
    assert "2 frames" in refusal(
        saved(small, "PNG", save_all=True, append_images=[Image.new("RGB", (33, 19))])
    )


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypavif", "AVIF"),
        (b"\0\0\0\x18ftypcrx ", "camera raw file .CR3"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw file .CR2"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"GIF89a", "GIF"),
        (b"not an image at all", "not an image"),
        (b"", "empty"),
    ],
)
def test_other_formats_are_named(start, what):
    with pytest.raises(ValueError, match=f"^a: .*{what}"):
        decode_photo(start + bytes(20) if start else b"", "a")


def test_sound_files_of_other_kinds_are_named_and_not_called_damaged(shared):
    grey, colour = scene(1)[..., 0], scene(3)
    kinds = {
        "12 bits per sample": (shared / "data" / "files" / "twelve_bit.jpg").read_bytes(),
        "32-bit floating point": (shared / "data" / "files" / "float32.tif").read_bytes(),
        "16-bit floating point": tiff(colour.astype(np.float16)),
        "32-bit integers": tiff(grey.astype(np.uint32), photometric="minisblack"),
        "16-bit signed integers": tiff(grey.astype(np.int16), photometric="minisblack"),
        "12 bits per sample ": tiff(grey.astype(np.uint16), photometric="minisblack").replace(
            struct.pack("<HHLHH", 258, 3, 1, 16, 0), struct.pack("<HHLHH", 258, 3, 1, 12, 0)
        ),
        "CMYK JPEG": saved(Image.new("CMYK", (8, 8)), "JPEG"),
        "TIFF in CMYK": saved(Image.new("CMYK", (8, 8)), "TIFF"),
        "TIFF in CIE": saved(Image.new("LAB", (8, 8)), "TIFF"),
        "a grey TIFF of 3 channels": tiff(colour, photometric="minisblack", planarconfig="contig"),
        "9 channels": tiff(scene(9), planarconfig="contig"),
        "tiled separate planes": tiff(colour.transpose(2, 0, 1), planarconfig="separate", tile=(16, 16)),
        "old-style JPEG": tiff(colour).replace(
            struct.pack("<HHLH", 259, 3, 1, 1), struct.pack("<HHLH", 259, 3, 1, 6)
        ),
        "Unsupported BMP pixel depth": saved(colour, "BMP").replace(b"\1\0\x18\0", b"\1\0\2\0"),
        "Zstandard": saved(colour, "TIFF", compression="zstd"),
    }
    for what, data in kinds.items():
        message = refusal(data)
        assert what.strip() in message and "damaged" not in message, message
        assert ";" in message, "says what to do"


def test_damaged_files_and_wrong_sizes_are_refused_before_memory_is_taken(tmp_path):
    jpeg, deep = saved(scene(3, height=64, width=64), "JPEG"), raw_png(scene(3, np.uint16))
    for data in (jpeg[:-300], deep[:400], deep[:-12], deep[:100] + b"?" + deep[101:], tiff(scene(3))[:-900]):
        assert "damaged" in refusal(data)
    assert "more than the limit" in refusal(raw_png(scene(3), size=(90_000, 90_000)))
    assert "zero size" in refusal(raw_png(scene(3), size=(0, 5)))
    vast = tiff(scene(3)).replace(
        struct.pack("<HHLL", 256, 4, 1, 33), struct.pack("<HHLL", 256, 4, 1, 1 << 30)
    )
    assert "more than the limit" in refusal(vast)
    for start in (b"text", b"\xff\xd8\xff\xe0"):
        with open(tmp_path / "huge.jpg", "wb") as file:
            file.write(start)
            file.truncate(1 << 36)
        with pytest.raises(
            ValueError, match="not an image" if start == b"text" else "bytes, more than the limit"
        ):
            read_photo(tmp_path / "huge.jpg")


def test_mutated_photographs_are_read_or_refused_in_one_line():
    chance = random.Random(0)
    deep = scene(3, np.uint16)
    files = [raw_png(deep), raw_png(scene(2)), saved(scene(3), "JPEG", exif=exif_bytes(6), xmp=XMP)]
    files += [
        tiff(deep, compression="zlib"),
        tiff(scene(3), tile=(16, 16)),
        tiff(deep, bigtiff=True, byteorder=">"),
    ]
    files += [saved(scene(3), "TIFF", exif=exif_bytes(3)), saved(scene(3), "BMP")]
    files += [saved(scene(4), "WEBP", exif=exif_bytes(6)), saved(scene(3), "PNG", exif=exif_bytes(5))]
    outcomes = Counter()
    for number in range(2000):
        data = bytearray(files[number % len(files)])
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))] = chance.randrange(
                256
            )
        if chance.random() < 0.2:
            del data[chance.randrange(1, len(data)) :]
        try:
            photo = decode_photo(bytes(data), "mutated", max_pixels=10**6)
        except ValueError as error:
            assert str(error).startswith("mutated: ") and len(str(error).splitlines()) == 1
            outcomes["refused"] += 1
        else:
            encode_photo(photo)
            outcomes["restored"] += 1
    assert min(outcomes.values()) > 200, outcomes


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
