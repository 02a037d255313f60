"""The dark channel prior against direct evaluation of its equations, and on haze that it must remove."""

import numpy as np
import pytest
from scipy import ndimage

from difflid_jax.baselines.dark_channel import atmospheric_light, dark_channel, dark_channel_prior
from difflid_jax.baselines.guided_filter import box_mean, guided_filter


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).random((37, 52, 3))


@pytest.mark.parametrize("shape", [(37, 52), (5, 60), (3, 2)])
def test_dark_channel_is_the_least_value_in_the_patch(shape):
    image = np.random.default_rng(1).random((*shape, 3))
    expected = ndimage.minimum_filter(image.min(axis=2), size=15, mode="constant", cval=np.inf)
    np.testing.assert_array_equal(dark_channel(image), expected)


@pytest.mark.parametrize("radius", [1, 6, 40])
def test_box_mean_counts_only_pixels_inside_the_image(image, radius):
    def boxes(values):
        return ndimage.convolve(values, np.ones((2 * radius + 1,) * 2), mode="constant")

    expected = boxes(image[..., 0]) / boxes(np.ones((37, 52)))
    np.testing.assert_allclose(box_mean(image[..., 0], radius), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_guided_filter_is_ridge_regression_in_every_window(image, channels):
    guide, values, radius, epsilon = image[..., :channels], image[..., 0] ** 2, 4, 1e-3
    slopes, offsets = np.empty((37, 52, channels)), np.empty((37, 52))
    for y, x in np.ndindex(37, 52):
        window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        i, p = guide[window].reshape(-1, channels), values[window].ravel()
        covariance = (i - i.mean(0)).T @ (i - i.mean(0)) / len(p) + epsilon * np.eye(channels)
        slopes[y, x] = np.linalg.solve(covariance, (i - i.mean(0)).T @ (p - p.mean()) / len(p))
        offsets[y, x] = p.mean() - slopes[y, x] @ i.mean(0)
    expected = (box_mean(slopes, radius) * guide).sum(-1) + box_mean(offsets, radius)
    result = guided_filter(guide[..., 0] if channels == 1 else guide, values, radius, epsilon)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)


def test_atmospheric_light_is_the_brightest_of_the_haziest_pixels():
    image = np.full((100, 100, 3), 0.2)
    image[:40, :40] = [0.7, 0.6, 0.65]
    image[20, 20] = [0.9, 0.95, 0.85]
    image[90, 90] = [1, 1, 1]  # a white object: brighter, but its neighbourhood is dark
    np.testing.assert_array_equal(atmospheric_light(image, dark_channel(image)), [0.9, 0.95, 0.85])


def test_haze_over_a_scene_that_follows_the_prior_is_removed():
    y, x = np.mgrid[0:120, 0:160]
    scene = np.stack([(np.sin(x / 3 + c) * np.cos(y / 4) > 0) * (0.5 + 0.15 * c) for c in range(3)], axis=-1)
    scene[:16] = 0.97  # sky, from which the atmospheric light is read
    transmission = np.where(y < 16, 0.02, np.exp(-1.2 * (119 - y) / 119))[..., None]
    hazy = scene * transmission + 0.95 * (1 - transmission)
    restored = dark_channel_prior(hazy)
    below_sky = np.s_[45:]
    before = np.mean((hazy - scene)[below_sky] ** 2)
    after = np.mean((restored - scene)[below_sky] ** 2)
    assert after < before / 10


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (9, 9), (40, 30)])
def test_a_flat_image_of_any_size_comes_back(value, shape):
    image = np.full((*shape, 3), value)
    restored = dark_channel_prior(image)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, image, atol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 4)), np.full((4, 4, 3), np.nan)])
def test_another_shape_or_a_pixel_that_is_no_number_is_refused(image):
    with pytest.raises(ValueError, match=r"\(H,W,3\)"):
        dark_channel_prior(image)
