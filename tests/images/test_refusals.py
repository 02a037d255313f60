"""Files that are not restored whole: noted, refused by their true name, or damaged."""

import io
import random
import struct
import time
from collections import Counter

import numpy as np
import pytest
import tifffile
from image_samples import XMP, again, exif_bytes, raw_png, refusal, saved, scene, tiff
from PIL import Image

from difflid_jax.images.photos import decode_photo, encode_photo, read_photo


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


def test_a_file_of_many_parts_takes_time_in_proportion():
    comments = b"".join(struct.pack(">HHL", 0xFFFE, 6, i) for i in range(40_000))
    resources = struct.pack(">4sHHL", b"8BIM", 2000, 0, 0) * 150_000
    plain = saved(scene(3), "JPEG")
    start = time.process_time()
    jpeg = decode_photo(plain[:2] + comments + plain[2:], "a")
    again(decode_photo(tiff(scene(3), extratags=[(34377, 7, len(resources), resources, True)]), "a"))
    assert time.process_time() - start < 8  # it took over 20 when it was quadratic
    assert comments in encode_photo(jpeg)


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
