from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from difflid_jax.images.kinds import through

RNG = np.random.default_rng(0)


def invert(pixels):
    assert pixels.dtype in (np.uint8, np.uint16, np.float32)
    assert pixels.ndim == 2 or pixels.shape[2] == 3
    return np.iinfo(pixels.dtype).max - pixels if pixels.dtype.kind == "u" else 1 - pixels


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    "shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (2, 5, 7, 3), (0, 5, 7, 3)]
)
def test_arrays_come_back_as_they_were_but_restored(shape, dtype):
    dtype = jnp.dtype(dtype)
    array = RNG.random(shape)
    array = (array * np.iinfo(dtype).max).astype(dtype) if dtype.kind == "u" else array.astype(dtype)
    back = through(array, invert)
    assert isinstance(back, np.ndarray)
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    channels = shape[-1] if len(shape) > 2 else 1
    colours = 1 if channels < 3 else 3
    top = np.iinfo(dtype).max if dtype.kind == "u" else 1
    if len(shape) == 2:
        array, back = array[..., None], back[..., None]
    np.testing.assert_array_equal(back[..., colours:], array[..., colours:])
    total = back[..., :colours].astype(np.float64) + array[..., :colours].astype(np.float64)
    np.testing.assert_allclose(total, top, rtol=0.01 if dtype.itemsize == 2 else 1e-6)


def test_jax_arrays_come_back_as_jax_arrays():
    array = jnp.asarray(RNG.random((4, 4, 3)), jnp.float32)
    back = through(array, invert)
    assert isinstance(back, jax.Array) and back.devices() == array.devices()
    np.testing.assert_allclose(back, 1 - array, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "returned"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("I;16", "I;16")],
)
def test_pil_images_keep_mode_size_alpha_and_profile(mode, returned):
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (5, 7), dtype=np.uint16))
    else:
        image = Image.fromarray(RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)).convert(mode)
    image.info["icc_profile"] = b"profile"
    back = through(image, invert)
    assert (back.mode, back.size) == (returned, image.size)
    assert back.info["icc_profile"] == b"profile"
    before = np.array(image if mode == "I;16" else image.convert(returned)).astype(int)
    after = np.array(back).astype(int)
    top = 65535 if mode == "I;16" else 255
    if returned in ("LA", "RGBA"):
        np.testing.assert_array_equal(after[..., -1], before[..., -1])
        before, after = before[..., :-1], after[..., :-1]
    np.testing.assert_array_equal(before + after, top)


def test_a_transparent_colour_becomes_alpha():
    image = Image.fromarray(np.full((2, 2, 3), 9, np.uint8))
    image.info["transparency"] = (9, 9, 9)
    back = through(image, invert)
    assert back.mode == "RGBA" and back.getchannel("A").getextrema() == (0, 0)
    assert "transparency" not in back.info


class Tensor:
    """Takes the place of torch.Tensor."""


Tensor.__module__ = "torch"


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ("photo.jpg", TypeError, r"the path 'photo.jpg'; open it with PIL.Image.open"),
        (Path("photo.jpg"), TypeError, r"the path 'photo.jpg'; open it with PIL.Image.open"),
        (b"\xff\xd8", TypeError, r"bytes; decode them with PIL.Image.open\(io.BytesIO"),
        ([np.zeros((4, 4, 3))], TypeError, "a list; pass the images one by one"),
        (
            Tensor(),
            TypeError,
            r"a PyTorch tensor; pass tensor.detach\(\).cpu\(\).numpy\(\), with channels last",
        ),
        (None, TypeError, "found NoneType"),
        (np.zeros((3, 40, 40)), ValueError, r"pass array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 3, 40, 40)), ValueError, r"pass array.transpose\(0, 2, 3, 1\)"),
        (np.zeros((4, 4, 5)), ValueError, r"found shape \(4, 4, 5\)"),
        (np.zeros((1, 1, 4, 4, 3)), ValueError, r"found shape \(1, 1, 4, 4, 3\)"),
        (np.zeros(4), ValueError, r"found shape \(4,\)$"),
        (np.zeros((0, 4, 3)), ValueError, "zero size"),
        (np.full((4, 4, 3), 128.0), ValueError, r"128 to 128; divide by .*255"),
        (np.full((4, 4, 3), 9000.0), ValueError, r"9000 to 9000; divide by .*65535"),
        (np.full((4, 4, 3), -0.5), ValueError, r"if the image is in \[-1,1\], pass \(array \+ 1\) / 2"),
        (np.full((4, 4, 3), np.nan), ValueError, "found nan to nan; replace"),
        (
            np.full((4, 4, 3), 255, np.int64),
            ValueError,
            r"found int64 from 255 to 255; pass array.astype\('uint8'\)",
        ),
        (np.full((4, 4, 3), -1), ValueError, "found int64 from -1 to -1; scale"),
        (np.zeros((4, 4, 3), bool), ValueError, r"found bool; pass array.astype\('uint8'\) \* 255"),
        (np.zeros((4, 4, 3), complex), ValueError, "found complex128"),
        (np.zeros((4, 4, 3), object), ValueError, "found object"),
        (Image.new("CMYK", (4, 4)), ValueError, r"mode CMYK.*image.convert\('RGB'\)"),
        (Image.new("F", (4, 4)), ValueError, "mode F"),
    ],
)
def test_typical_mistakes_are_answered(mistake, error, message):
    with pytest.raises(error, match=message):
        through(mistake, invert)
