"""PSNR and SSIM against scikit-image and PyTorch."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from difflid_jax.metrics.fidelity import psnr, shrunk_to_256, ssim

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def photograph(name: str) -> np.ndarray:
    return np.asarray(Image.open(GOLDEN / f"{name}.png"), np.float32) / 255


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Degraded and clean photographs, (2,90,96,3): not square, so that swapped axes would show."""
    degraded, clean = (
        np.stack([photograph(f"{name}_{kind}")[:90] for name in ("astronaut", "coffee")])
        for kind in ("degraded", "clean")
    )
    return degraded, clean


def test_psnr_is_scikit_images_on_photographs(pairs):
    wanted = [peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(psnr(*pairs), wanted, atol=1e-4)


def test_ssim_is_scikit_images_gaussian_variant_on_photographs(pairs):
    def reference(a, b):
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        return structural_similarity(a, b, data_range=1.0, channel_axis=-1, **gaussian)

    wanted = [reference(*pair) for pair in zip(*pairs, strict=True)]
    np.testing.assert_allclose(ssim(*pairs), wanted, atol=1e-5)


def test_uniform_ssim_is_scikit_images_default_on_photographs(pairs):
    wanted = [
        structural_similarity(*pair, data_range=1.0, channel_axis=-1) for pair in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pairs, window="uniform"), wanted, atol=1e-5)


def test_images_are_averaged_down_as_by_pytorch():
    recorded = np.load(GOLDEN / "adaptive_pool_torch.npz")
    image = jnp.asarray(np.random.default_rng(7).random((1, 700, 901, 3)), jnp.float32)
    shrunk = shrunk_to_256(image)
    assert shrunk.shape == tuple(recorded["shape"])
    np.testing.assert_allclose(shrunk[:, ::19, ::19], recorded["every_19"], atol=1e-6)


@pytest.mark.parametrize(("side", "shrunk"), [(383, 383), (384, 192), (640, 320), (641, 213)])
def test_the_factor_is_rounded_as_python_rounds(side, shrunk):
    # 384/256 = 1.5 → 2, 640/256 = 2.5 → 2 (to even), 641/256 → 3.
    assert shrunk_to_256(jnp.zeros((1, side, side + 100, 1))).shape[1] == shrunk


def test_downsampled_ssim_is_the_ssim_of_the_shrunk_images():
    a, b = np.random.default_rng(0).random((2, 1, 384, 400, 1)).astype(np.float32)
    wanted = ssim(shrunk_to_256(jnp.asarray(a)), shrunk_to_256(jnp.asarray(b)))
    np.testing.assert_allclose(ssim(a, b, downsample=True), wanted, atol=1e-6)
    assert abs(float(wanted[0] - ssim(a, b)[0])) > 1e-3


def test_low_precision_images_are_scored_in_float32(pairs):
    low = [jnp.asarray(images, jnp.bfloat16) for images in pairs]
    exact = [np.asarray(images.astype(jnp.float32)) for images in low]
    np.testing.assert_array_equal(psnr(*low), psnr(*exact))
    np.testing.assert_array_equal(ssim(*low), ssim(*exact))
    assert psnr(*low).dtype == ssim(*low).dtype == jnp.float32


def test_equal_images_have_infinite_psnr_and_ssim_one(pairs):
    clean = pairs[1]
    assert np.isposinf(psnr(clean, clean)).all()
    np.testing.assert_allclose(ssim(clean, clean), 1.0, atol=1e-6)


@pytest.mark.parametrize(("window", "least"), [("gaussian", 11), ("uniform", 7)])
def test_images_smaller_than_the_window_are_refused(window, least):
    small = np.zeros((1, least - 1, 40, 3), np.float32)
    with pytest.raises(ValueError, match=f"at least {least}×{least} pixels, found {least - 1}×40"):
        ssim(small, small, window=window)
    smallest = np.zeros((1, least, least, 3), np.float32)
    np.testing.assert_allclose(ssim(smallest, smallest, window=window), 1.0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_arrays_of_another_kind_are_refused(metric, pairs):
    degraded, clean = pairs
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], found uint8; divide"):
        metric(np.zeros((1, 20, 20, 3), np.uint8), np.zeros((1, 20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match=r"equal shape .* found \(2, 90, 96, 3\) and \(2, 90, 95, 3\)"):
        metric(degraded, clean[:, :, :-1])
    with pytest.raises(ValueError, match="equal shape"):
        metric(degraded[0], clean[0])


def test_an_unknown_window_is_refused(pairs):
    with pytest.raises(ValueError, match="'gaussian' or 'uniform', found 'box'"):
        ssim(*pairs, window="box")
