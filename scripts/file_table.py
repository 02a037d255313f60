"""Print docs/files.md: what becomes of each kind of image file, found by restoring one of each.

    python scripts/file_table.py > docs/files.md

Every cell is measured: a small file of the kind is made with Pillow or tifffile, read and written with
`difflid_jax.images.photos`, and what other readers find in both is compared.
"""

import io
import struct
from collections.abc import Callable

import numpy as np
import pyvips
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from difflid_jax.images.formats import EXTENSIONS, UNSUPPORTED
from difflid_jax.images.photos import MAX_PIXELS, Photo, decode_photo, encode_photo

_INTRODUCTION = """\
# Image files

How `restore` and the page of `difflid serve` treat each kind of file. `scripts/file_table.py` writes the
tables by restoring a file of each kind; a test keeps them up to date.

- **Kept**: the output has what the input has. Metadata are copied as bytes, so text in any encoding, maker
  notes, unknown tags and long texts stay unchanged.
- **Converted**: the output has the same content in another form.
- **Refused**: a one-line message says what the file is and how to convert it. The other files are restored,
  and the exit status is 1. A file is called damaged only if it is.
- **—**: does not exist in this format.

Outputs are stored in the orientation of the inputs, so that all sizes, orientations and pointers in their
metadata stay valid; the network sees the image upright. Wrong sizes in the metadata are corrected. Previews
in the metadata (EXIF, Photoshop) show the hazy image and are removed. Anything else that an output lacks (a
gain map, depth map, video or other data after a JPEG, content credentials, Photoshop layers, reduced copies
in a TIFF) is reported by name when the file is restored. The maker notes of a TIFF move within the file;
some hold absolute positions, which only the maker's own software follows.
"""
_EXIF = b"Exif\0\0"
_ICC = b"a profile, which nobody parses" * 9
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a dc:rights="\xc3\xa9"/></x:xmpmeta>'
_METADATA = ("profile", "EXIF", "XMP")
_COLUMNS = ("bit depth and colours", "alpha", *_METADATA, "orientation", "pages")


def table() -> str:
    """The whole of docs/files.md."""
    lines = [_INTRODUCTION, "| format | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for form, samples in _samples().items():
        cells = ["; ".join(_outcomes(column, samples.get(column, {}))) or "—" for column in _COLUMNS]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    lines += ["", "Intact files that are refused, and the message:", "", "| file | message |", "|---|---|"]
    lines += [f"| {what} | {_message(data)} |" for what, data in _refused().items()]
    extensions = ", ".join(f"`{extension}`" for extension in sorted(EXTENSIONS))
    lines += [
        "",
        f"In a folder, files named {extensions} (in any case) are restored; others are counted and reported.",
    ]
    lines.append(f"Images of more than {MAX_PIXELS / 1e6:g} megapixels are refused unread (`--max_pixels`).")
    return "\n".join(lines) + "\n"


def _samples() -> dict[str, dict[str, dict[str, bytes]]]:
    """{format: {column: {label: file}}}."""
    grey, colour, clear, palette = (
        _scene(1)[..., 0],
        _scene(3),
        _scene(4),
        Image.fromarray(_scene(3)).quantize(16),
    )
    about = {"icc_profile": _ICC, "exif": _exif(1)}
    turned = {"exif": _exif(6)}
    second = {"save_all": True, "append_images": [Image.fromarray(255 - colour)]}
    jpeg, webp = (
        saved(colour, "JPEG", xmp=_XMP, **about),
        saved(colour, "WEBP", lossless=True, xmp=_XMP, **about),
    )
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", _XMP.decode())
    png = saved(colour, "PNG", pnginfo=text, **about)
    tags = {34675: _ICC, 700: _XMP, 34665: {0x927C: b"maker note"}, 271: "Camera"}
    tiff = saved(colour, "TIFF", tiffinfo=tags)
    deep = {"8": np.uint8, "16": np.uint16}
    return {
        "JPEG": {
            "bit depth and colours": {
                "8 bit": jpeg,
                "12 bit": twelve_bit_jpeg(),
                "grey": saved(grey, "JPEG"),
            },
            **{column: {"": jpeg} for column in _METADATA},
            "orientation": {"": saved(colour, "JPEG", **turned)},
            "pages": {"further images (MPF)": saved(colour, "JPEG", extra=b"\xff\xe2\0\6MPF\0")},
        },
        "PNG": {
            "bit depth and colours": {
                **{f"{bits} bit": _png(_scene(3, kind)) for bits, kind in deep.items()},
                "grey": _png(_scene(1, np.uint16)),
                "1 bit": saved(Image.fromarray(grey).convert("1"), "PNG"),
                "palette": saved(palette, "PNG"),
            },
            "alpha": {
                **{f"{bits} bit": _png(_scene(4, kind)) for bits, kind in deep.items()},
                "with grey": _png(_scene(2, np.uint16)),
                "transparent colour": saved(colour, "PNG", transparency=(1, 2, 3)),
            },
            **{column: {"": png} for column in _METADATA},
            "orientation": {"": saved(colour, "PNG", **turned)},
            "pages": {"animation": saved(colour, "PNG", **second)},
        },
        "WebP": {
            "bit depth and colours": {"8 bit": webp},
            "alpha": {"": saved(clear, "WEBP", lossless=True, exact=True)},
            **{column: {"": webp} for column in _METADATA},
            "orientation": {"": saved(colour, "WEBP", lossless=True, **turned)},
            "pages": {"animation": saved(colour, "WEBP", **second)},
        },
        "TIFF, BigTIFF": {
            "bit depth and colours": {
                **{f"{bits} bit": _tiff(_scene(3, kind)) for bits, kind in deep.items()},
                "16 bit float": _tiff(colour.astype(np.float16)),
                "32 bit float": _tiff(colour.astype(np.float32)),
                "grey": _tiff(_scene(1, np.uint16)[..., 0], photometric="minisblack"),
                "1 bit": saved(Image.fromarray(grey).convert("1"), "TIFF"),
                "palette": saved(palette, "TIFF"),
            },
            "alpha": {
                **{f"{bits} bit": _tiff(_scene(4, kind), extrasamples=[2]) for bits, kind in deep.items()},
                "with grey": _tiff(_scene(2, np.uint16), photometric="minisblack", extrasamples=[2]),
                "premultiplied": _tiff(clear, extrasamples=[1]),
                "unspecified channel": _tiff(clear, extrasamples=[0]),
            },
            **{column: {"": tiff} for column in _METADATA},
            "orientation": {"": saved(colour, "TIFF", tiffinfo={274: 6})},
            "pages": {
                "several": saved(colour, "TIFF", **second),
                "reduced copies": _tiff_pages((colour, 0), (colour[::2, ::2], 1)),
            },
        },
        "BMP": {
            "bit depth and colours": {"8 bit": saved(colour, "BMP"), "palette": saved(palette, "BMP")},
            "alpha": {"": alpha_bmp()},
        },
    }


def _refused() -> dict[str, bytes]:
    colour = _scene(3)
    return {
        "JPEG, 12 bit": twelve_bit_jpeg(),
        "JPEG, CMYK": saved(Image.new("CMYK", (8, 8)), "JPEG"),
        "TIFF, floating point": _tiff(colour.astype(np.float32)),
        "TIFF, CMYK": saved(Image.new("CMYK", (8, 8)), "TIFF"),
        "TIFF, CIE L\\*a\\*b\\*": saved(Image.new("LAB", (8, 8)), "TIFF"),
        "TIFF, three channels without colours": _tiff(colour, photometric="minisblack"),
        "TIFF, Zstandard": saved(colour, "TIFF", compression="zstd"),
        "TIFF, several pages": saved(colour, "TIFF", save_all=True, append_images=[Image.fromarray(colour)]),
        "TIFF, a preview first": _tiff_pages((colour[::2, ::2], 1), (colour, 0)),
        "DNG": saved(colour, "TIFF", tiffinfo={50706: bytes((1, 4, 0, 0))}),
    } | {what.split(" ", 1)[1]: bytes(offset) + magic + bytes(16) for offset, magic, what, _ in UNSUPPORTED}


def _outcomes(column: str, files: dict[str, bytes]) -> list[str]:
    outcomes = []
    for label, data in files.items():
        try:
            photo = decode_photo(data, "a")
        except ValueError as error:
            if "damaged" in str(error):
                raise
            outcomes.append(f"{label} refused".strip())
            continue
        out = encode_photo(photo)
        if column == "alpha":
            np.testing.assert_array_equal(decode_photo(out, "a").extra, photo.extra)
        before, after = (_PROBES[column](image, photo) for image in (data, out))
        lost = column == "pages" and after < before
        assert photo.notes or not lost, f"{label}: lost without a note"
        what = "kept" if before == after else "not kept, reported" if lost else f"converted to {after}"
        outcomes.append(f"{label} {what}".strip())
    return outcomes


def _message(data: bytes) -> str:
    try:
        decode_photo(data, "a")
    except ValueError as error:
        return str(error).removeprefix("a: ").replace("*", "\\*")
    raise AssertionError("restored although it should be refused")


def _depth(data: bytes, photo: Photo) -> str:
    with Image.open(io.BytesIO(data)) as image:
        bits = (
            data[24]
            if image.format == "PNG"
            else image.tag_v2.get(258, (1,))[0]
            if image.format == "TIFF"
            else 8
        )
        grey = photo.pixels.ndim == 2
        return f"{bits} bit {'palette' if image.mode == 'P' else 'grey' if grey else 'RGB'}"


def _alpha(data: bytes, photo: Photo) -> str:
    if photo.format == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            kind = ("an unspecified", "a premultiplied", "a straight")[file.pages[0].extrasamples[0]]
    else:
        kind = "a transparent colour" if b"tRNS" in data else "a straight"
    return kind + (" alpha channel" if "colour" not in kind else "")


def _images(data: bytes, photo: Photo) -> int:
    if photo.format == "TIFF":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return len(file.pages)
    return 1 + data.count(b"MPF\0")


def _opened(read: Callable[[Image.Image], object]) -> Callable[[bytes, Photo], object]:
    def probe(data: bytes, photo: Photo) -> object:
        with Image.open(io.BytesIO(data)) as image:
            return read(image)

    return probe


_PROBES: dict[str, Callable[[bytes, Photo], object]] = {
    "bit depth and colours": _depth,
    "alpha": _alpha,
    "profile": _opened(lambda image: image.info["icc_profile"]),
    "EXIF": _opened(lambda image: (image.getexif()[0x010F], image.getexif().get_ifd(0x8769)[0x927C])),
    "XMP": _opened(lambda image: image.info["xmp"]),
    "orientation": _opened(lambda image: image.getexif()[0x0112]),
    "pages": _images,
}


def _scene(channels: int, dtype: type = np.uint8) -> np.ndarray:
    ramp = np.linspace(0.1, 0.9, 16 * 24 * channels).reshape(16, 24, channels)
    return (ramp * np.iinfo(dtype).max).astype(dtype)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    exif.get_ifd(0x8769)[0x927C] = b"maker note"
    return exif.tobytes()


def saved(image: np.ndarray | Image.Image, form: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def _png(samples: np.ndarray) -> bytes:
    """A PNG of any depth and channels, which Pillow does not write."""
    deep, grey = samples.dtype == np.uint16, samples.shape[2] < 3
    kind = ("b-w", "grey16") if grey else ("srgb", "rgb16")
    return pyvips.Image.new_from_array(samples).copy(interpretation=kind[deep]).pngsave_buffer()


def _tiff(image: np.ndarray, **options: object) -> bytes:
    options = {"photometric": "rgb", "planarconfig": "contig" if image.ndim == 3 else None, **options}
    file = io.BytesIO()
    tifffile.imwrite(file, image, metadata=None, **options)
    return file.getvalue()


def _tiff_pages(*pages: tuple[np.ndarray, int]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for image, kind in pages:
            writer.write(image, photometric="rgb", metadata=None, subfiletype=kind)
    return file.getvalue()


def twelve_bit_jpeg() -> bytes:
    """The header of one: Pillow writes 8 bits only."""
    data = bytearray(saved(_scene(3), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


def alpha_bmp() -> bytes:
    """A BMP of 32 bits with masks for red, green, blue and alpha, which Pillow does not write."""
    masks = struct.pack("<LLLL", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = _scene(4).tobytes()
    header = struct.pack("<LllHHLLllLL", 56, 24, 16, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return struct.pack("<2sLHHL", b"BM", 14 + 56 + len(pixels), 0, 0, 14 + 56) + header + pixels


if __name__ == "__main__":
    print(table(), end="")
