"""The scattering model, and the depth given to photographs that have none."""

import numpy as np
import pytest

from difflid_jax.data.haze import add_haze, plausible_depth, to_linear, transmission
from difflid_jax.data.photographs import SPLITS, motorcycle_depth, photographs


def test_haze_is_the_scattering_model():
    clean = np.random.default_rng(0).random((3, 4, 3), np.float32)
    depth = np.arange(12.0).reshape(3, 4)
    hazy = add_haze(clean, depth, 1.2, 0.8)
    t = np.exp(-1.2 * depth / 11)[..., None]
    np.testing.assert_allclose(hazy, clean * t + 0.8 * (1 - t), rtol=1e-5)
    np.testing.assert_allclose(hazy[0, 0], clean[0, 0])  # at depth 0 nothing is lost


def test_haze_in_linear_light_adds_up_photons_and_is_the_same_where_there_is_no_haze():
    clean = np.array([[[0.02, 0.2, 0.9], [0.02, 0.2, 0.9]]])
    hazy = add_haze(clean, np.array([[0.0, 1.0]]), np.log(2), 0.8, linear=True)
    np.testing.assert_allclose(hazy[0, 0], clean[0, 0], atol=1e-6)
    np.testing.assert_allclose(
        to_linear(hazy[0, 1]), (to_linear(clean[0, 1]) + to_linear(0.8)) / 2, rtol=1e-4
    )
    # Mid-grey of a display reflects 21.4 % of the light (IEC 61966-2-1).
    np.testing.assert_allclose(to_linear([0.0, 0.04, 0.5, 1.0]), [0, 0.003096, 0.214041, 1], rtol=1e-4)


def test_airlight_may_have_a_colour():
    hazy = add_haze(np.zeros((2, 2, 3)), np.ones((2, 2)), 1.0, np.array([0.7, 0.8, 0.9]))
    np.testing.assert_allclose(hazy[0, 0] / (1 - np.exp(-1)), [0.7, 0.8, 0.9], rtol=1e-5)


@pytest.mark.parametrize("depth", [np.zeros((2, 2)), np.full((2, 2), np.nan), -np.ones((2, 2))])
def test_a_depth_map_with_holes_is_refused(depth):
    with pytest.raises(ValueError, match="fill holes first"):
        transmission(depth, 1.0)


def test_a_depth_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"found \(3, 2\)"):
        add_haze(np.zeros((2, 2, 3)), np.ones((3, 2)), 1.0, 1.0)


def test_plausible_depth_recedes_follows_edges_and_is_seeded():
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, 80:] = 200
    depth = plausible_depth(image, 7)
    assert depth.shape == (120, 160) and depth.dtype == np.float32
    assert depth.min() > 0 and depth.max() == 1
    assert depth[:30].mean() > depth[-30:].mean()
    steps = np.abs(np.diff(depth, axis=1)).mean(0)
    assert steps[79] > 2 * np.median(steps)
    np.testing.assert_array_equal(depth, plausible_depth(image, 7))
    assert not np.array_equal(depth, plausible_depth(image, 8))


@pytest.mark.parametrize(
    ("top", "is_sky"),
    [
        ((120, 170, 240), True),  # blue
        ((225, 225, 230), True),  # overcast
        ((40, 60, 40), False),  # dark woods
        ((230, 150, 60), False),  # a warm wall
    ],
)
def test_a_sky_lies_at_its_depth_and_the_scene_stays(top, is_sky):
    rng = np.random.default_rng(0)
    image = rng.integers(20, 120, (200, 300, 3)).astype(np.uint8)
    image[:80] = top
    image[150:, :100] = (225, 225, 230)  # as pale as a sky, but not at the top
    depth, scene = plausible_depth(image, 3, sky=6), plausible_depth(image, 3)
    if is_sky:
        np.testing.assert_allclose(depth[:72], 6, rtol=1e-6)
        np.testing.assert_array_equal(depth[100:], scene[100:])
    else:
        np.testing.assert_array_equal(depth, scene)


def test_photographs_are_there_and_disjoint():
    assert not {file for _, file in SPLITS["train"]} & {file for _, file in SPLITS["test"]}
    images = photographs("test")
    assert [name for name, _, _ in images] == ["motorcycle", "coffee"]
    for _, clean, depth in images:
        assert clean.dtype == np.uint8 and clean.shape == (*depth.shape, 3)
        assert np.isfinite(depth).all() and depth.min() > 0
        assert depth.max() == 1
    metres = motorcycle_depth()
    assert 1.5 < metres.min() < metres.max() < 6.5


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="found 'validation'"):
        photographs("validation")
