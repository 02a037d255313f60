"""Each protocol against its definition, computed here with numpy and scikit-image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from difflid_jax.metrics.measure import measure, measure_all
from difflid_jax.metrics.protocols import PROTOCOLS, find_protocol

REPOSITORY = Path(__file__).resolve().parents[2]
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return np.asarray(Image.open(REPOSITORY / "tests/golden/coffee_clean.png"), np.float32)[None] / 255


@pytest.fixture(scope="module")
def restored(clean) -> np.ndarray:
    """A restoration that leaves [0,1], lies between 8-bit levels and is too dark."""
    noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    return 0.7 * clean + 0.15 * noise


def fidelity(restored: np.ndarray, clean: np.ndarray) -> tuple[float, float]:
    a, b = restored[0].astype(np.float64), clean[0].astype(np.float64)
    return peak_signal_noise_ratio(b, a, data_range=1.0), structural_similarity(
        a, b, channel_axis=-1, **GAUSSIAN
    )


def assert_scores(found: dict, wanted: tuple[float, float]) -> None:
    assert float(found["psnr"][0]) == pytest.approx(wanted[0], abs=1e-3)
    assert float(found["ssim"][0]) == pytest.approx(wanted[1], abs=1e-4)


def test_the_presets_are_those_that_papers_use():
    assert list(PROTOCOLS) == [
        "paper",
        "uint8",
        "y",
        "ssim_downsampled",
        "ssim_skimage7",
        "gt_mean",
        "release_crops",
    ]
    assert all(name == protocol.name and protocol.summary for name, protocol in PROTOCOLS.items())


def test_paper_clamps_and_does_not_round(restored, clean):
    found = measure(restored, clean)
    assert_scores(found, fidelity(np.clip(restored, 0, 1), clean))
    assert found["psnr"].shape == found["ssim"].shape == (1,)


def test_uint8_rounds_after_clamping(clean):
    # A fine restoration, of which rounding takes a whole decibel.
    restored = clean + np.random.default_rng(1).uniform(-0.002, 0.002, clean.shape).astype(np.float32)
    rounded = np.round(np.clip(restored, 0, 1) * 255) / 255
    assert abs(fidelity(rounded, clean)[0] - fidelity(np.clip(restored, 0, 1), clean)[0]) > 0.5
    found = measure(restored, clean, "uint8")
    assert float(found["psnr"][0]) == pytest.approx(fidelity(rounded, clean)[0], abs=1e-2)


def test_y_is_the_studio_luma(restored, clean):
    def luma(image):
        return rgb2ycbcr(image)[..., :1] / 255

    assert_scores(measure(restored, clean, "y"), fidelity(luma(np.clip(restored, 0, 1)), luma(clean)))


def test_ssim_skimage7_is_scikit_images_default(restored, clean):
    found = measure(restored, clean, "ssim_skimage7")
    wanted = structural_similarity(np.clip(restored, 0, 1)[0], clean[0], data_range=1.0, channel_axis=-1)
    assert float(found["ssim"][0]) == pytest.approx(wanted, abs=1e-4)
    assert float(found["psnr"][0]) == float(measure(restored, clean)["psnr"][0])


def test_ssim_downsampled_changes_the_ssim_of_large_images_only(restored, clean):
    small, paper = measure(restored, clean, "ssim_downsampled"), measure(restored, clean, "paper")
    assert small == paper
    large = [np.tile(image, (1, 4, 4, 1)) for image in (restored, clean)]
    found, full = measure(*large, "ssim_downsampled"), measure(*large, "paper")
    # Averaging over 2×2 takes half of the noise away.
    assert float(found["ssim"][0]) > float(full["ssim"][0]) + 0.05
    assert float(found["psnr"][0]) == float(full["psnr"][0])


def test_gt_mean_scales_to_the_brightness_of_the_ground_truth(restored, clean):
    weights = np.array([0.299, 0.587, 0.114])
    clamped = np.clip(restored, 0, 1)
    scaled = np.clip(clamped * (clean @ weights).mean() / (clamped @ weights).mean(), 0, 1)
    assert_scores(measure(restored, clean, "gt_mean"), fidelity(scaled, clean))
    # An image that is only too dark scores as the ground truth itself.
    assert float(measure(0.5 * clean, clean, "gt_mean")["psnr"][0]) > 100


def test_gt_mean_scales_each_image_of_a_batch_by_itself(clean):
    batch = np.concatenate([0.5 * clean, 0.25 * clean])
    assert (np.asarray(measure(batch, np.concatenate([clean, clean]), "gt_mean")["psnr"]) > 100).all()


def test_gt_mean_of_a_black_image_is_finite(clean):
    black = np.zeros_like(clean)
    assert measure(black, clean, "gt_mean")["psnr"][0] == measure(black, clean, "paper")["psnr"][0]


def test_lpips_sees_the_prepared_image_in_rgb(restored, clean):
    seen = {}

    def lpips(a, b):
        seen.update(a=np.asarray(a), b=np.asarray(b))
        return np.zeros(len(a))

    both = replace(PROTOCOLS["y"], round_to_8_bit=True)
    assert list(measure(restored, clean, both, lpips=lpips)) == ["psnr", "ssim", "lpips"]
    np.testing.assert_allclose(seen["a"], np.round(np.clip(restored, 0, 1) * 255) / 255, atol=1e-6)
    np.testing.assert_array_equal(seen["b"], clean)


def test_bad_input_is_refused(restored, clean):
    with pytest.raises(ValueError, match=r"expected one of paper, uint8, .*, found 'ssim'"):
        find_protocol("ssim")
    with pytest.raises(ValueError, match="found uint8"):
        measure((255 * clean).astype(np.uint8), clean)
    with pytest.raises(ValueError, match=r"RGB images .* found \(1, 96, 96, 1\)"):
        measure(restored[..., :1], clean[..., :1])


def real_pairs(root: Path, limit: int | None = None):
    """(name, hazy, clean) of the two development sets, whose names give the partner by the first number."""
    clean = {path.stem.split("_")[0]: path for path in (root / "gt").iterdir()}
    for path in sorted((root / "hazy").iterdir())[:limit]:
        images = (path, clean[path.stem.split("_")[0]])
        yield (path.name, *(np.asarray(Image.open(p).convert("RGB"), np.float32) / 255 for p in images))


def test_real_hazy_images_score_as_scikit_image_says(shared):
    examples = list(real_pairs(shared / "data/sots_indoor_dev", limit=2))
    found = measure_all(examples, "paper")
    for name, hazy, clean in examples:
        wanted = fidelity(hazy[None], clean[None])
        assert_scores({metric: [value] for metric, value in found[name].items()}, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data_set", "psnr", "ssim"), [("sots_indoor_dev", 12.864, 0.7534), ("i_haze_dev", 14.091, 0.6278)]
)
def test_hazy_input_scores_as_measured_with_reference_tools(shared, data_set, psnr, ssim):
    found = measure_all(real_pairs(shared / "data" / data_set), "paper").values()
    assert np.mean([scores["psnr"] for scores in found]) == pytest.approx(psnr, abs=1e-3)
    assert np.mean([scores["ssim"] for scores in found]) == pytest.approx(ssim, abs=1e-4)
