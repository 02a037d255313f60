"""TIFF: every layout, channel and tag."""

import io
import struct

import numpy as np
import pytest
import tifffile
from image_samples import ICC, XMP, again, saved, scene, tiff
from PIL import Image, TiffImagePlugin

from difflid_jax.images.photos import decode_photo, encode_photo


def test_tiffs_of_other_layouts_are_read_as_they_look():
    grey, colour = scene(1, np.uint16)[..., 0], scene(3, np.uint16)
    inverted = decode_photo(tiff(65535 - grey, photometric="miniswhite"), "in")
    planar = decode_photo(tiff(colour.transpose(2, 0, 1), planarconfig="separate", compression="zlib"), "in")
    palette = decode_photo(saved(Image.fromarray(scene(3)).quantize(16), "TIFF"), "in")
    bits = decode_photo(saved(Image.fromarray(scene(3)).convert("1"), "TIFF", compression="group4"), "in")
    greys = decode_photo(saved(Image.fromarray(scene(1)[..., 0]).convert("P"), "TIFF"), "in")
    jpeg = decode_photo(saved(scene(3), "TIFF", compression="jpeg", quality=100), "in")
    np.testing.assert_array_equal(inverted.pixels, grey)
    np.testing.assert_array_equal(again(inverted).pixels, grey)
    np.testing.assert_array_equal(planar.pixels, colour)
    np.testing.assert_array_equal(
        palette.pixels, np.array(Image.fromarray(scene(3)).quantize(16).convert("RGB"))
    )
    np.testing.assert_array_equal(bits.pixels, np.array(Image.fromarray(scene(3)).convert("1").convert("L")))
    np.testing.assert_array_equal(greys.pixels, scene(1).repeat(3, -1))
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
    # Tags that all have the same value would take more memory than the file by their number.
    tags = b"".join(struct.pack("<HHLL", 1000 + i, 1, 10_000, 0) for i in range(500))
    shared = b"II*\0" + struct.pack("<LH", 8, 500) + tags + bytes(10_000)
    with pytest.raises(ValueError, match="tags that share their values"):
        decode_photo(shared, "in")
    # A link to nowhere behind the only directory.
    end = data.index(struct.pack("<H", len(tifffile.TiffFile(io.BytesIO(data)).pages[0].tags)), 8)
    link = end + 2 + 12 * int.from_bytes(data[end : end + 2], "little")
    odd = data[:link] + b"\xff\xff\xff\x7f" + data[link + 4 :]
    np.testing.assert_array_equal(decode_photo(odd, "in").pixels, scene(3))
