"""Crops and the haze that is made on the fly: where they come from, and what is drawn how often."""

import numpy as np
import pytest

from difflid_jax.data.augment import Augment, CropSpec, HazeSpec, make_hazy
from difflid_jax.data.cache import Undecoded
from difflid_jax.data.items import InMemory
from difflid_jax.data.sources import DataSet

FAR = np.full((16, 16), 65535, np.uint16)


def _grey(value):
    return np.full((16, 16, 3), value, np.uint8)


def _hazy(clean, spec, count=400, depth=FAR, **options):
    """`count` draws of (hazy, clean), float64 (count,16,16,3)."""
    made = [make_hazy(clean, depth, spec, np.random.default_rng(i), **options) for i in range(count)]
    return tuple(np.stack([pair[name] for pair in made]).astype(float) for name in ("hazy", "clean"))


def _coordinates(height=40, width=30):
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def _pair(clean, second):
    items = [InMemory("clean", clean), InMemory("second", second)]
    kind, elements = ("depth", [[0, 1]]) if second.ndim == 2 else ("pairs", [[1, 0]])
    return DataSet(kind, Undecoded(items, progress=False), np.array(elements), ("a",), "")


def _crops(data, crop, count, haze=None):
    augment = Augment(data, crop, haze or HazeSpec())
    return [augment(0, np.random.default_rng(i)) for i in range(count)]


def test_scaled_crops_show_more_of_the_image():
    data = _pair(_coordinates(), 255 - _coordinates())
    extents = set()
    for crop in _crops(data, CropSpec(16, flip=False, scale=(0.5, 1.0)), 40):
        assert crop["clean"].shape == (16, 16, 3)
        np.testing.assert_allclose(crop["hazy"], 255.0 - crop["clean"], atol=1)
        extents.add(int(crop["clean"][-1, 8, 0]) - int(crop["clean"][0, 8, 0]))
    # Half the scale would see 31 rows, but the image has 30 columns; full scale sees 15 steps.
    assert min(extents) <= 16 and 25 <= max(extents) <= 30


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_whole_image_or_a_region_goes_with_its_crop_under_the_same_haze(share):
    rows = np.indices((40, 40))[0]
    clean = np.repeat((4 * rows).astype(np.uint8)[..., None], 3, axis=2)
    data = _pair(clean, np.rint(rows / 39 * 65535).astype(np.uint16))
    side = round(40 * share)
    starts = set()
    for crop in _crops(data, CropSpec(16, view=side, region=(share, share)), 20):
        top, left, bottom, right = (round(float(edge) * side) for edge in crop["window"])
        assert bottom - top == right - left == 16
        np.testing.assert_array_equal(crop["view"][top:bottom, left:right], crop["hazy"])
        starts.add(int(crop["clean"][0, 0, 0]) // 4 - top)
    assert starts == {0} if share == 1 else min(starts) < 5 and max(starts) > 15


def test_haze_is_the_scattering_model_over_the_depth_of_the_whole_image():
    rows = np.indices((40, 30))[0]
    data = _pair(_coordinates(), np.rint(rows / 39 * 65535).astype(np.uint16))
    for crop in _crops(data, CropSpec(16), 20, HazeSpec(airlight=(0.8, 0.8), beta=(1.2, 1.2))):
        t = np.exp(-1.2 * crop["clean"][:, :, :1] / 39)
        expected = crop["clean"] * t + 0.8 * 255 * (1 - t)
        assert np.abs(crop["hazy"] - expected).max() <= 0.51  # rounded once, to 8 bits


def test_airlight_and_beta_are_uniform_and_independent():
    """At depth 1 the image is J·e^(−β) + A(1−e^(−β)): a black and a white pixel of a crop give A and β."""
    clean = np.where((np.indices((16, 16))[1] < 8)[..., None], 0, _grey(255))
    hazy, _ = _hazy(clean.astype(np.uint8), HazeSpec())
    black, white = hazy[:, 0, 0, 0] / 255, hazy[:, 0, 15, 0] / 255
    airlight, beta = black / (1 - white + black), -np.log(white - black)
    for values, low, high in ((airlight, 0.7, 1.0), (beta, 0.6, 1.8)):
        tolerance = 0.05 * (high - low)
        assert low - tolerance < values.min() < low + tolerance
        assert high - tolerance < values.max() < high + tolerance
        assert abs(values.mean() - (low + high) / 2) < tolerance
    assert abs(np.corrcoef(airlight, beta)[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("change", "touches_clean"),
    [
        ({"white": 0.5}, False),
        ({"clean": 0.5}, False),
        ({"linear": 0.5}, False),
        ({"tint": 0.1}, False),
        ({"noise": 0.05}, False),
        ({"jpeg": (30, 40)}, False),
        ({"gamma": (0.7, 1.4)}, True),
        ({"light": (0.7, 1.0)}, True),
    ],
)
def test_broader_haze_changes_training_and_never_evaluation(change, touches_clean):
    clean = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    depth = (np.indices((16, 16))[0] * 4000).astype(np.uint16)
    narrow, broad = HazeSpec(), HazeSpec(**change)
    first, second = (_hazy(clean, spec, 16, depth) for spec in (narrow, broad))
    assert 0.2 < np.sqrt(np.mean((first[0] - second[0]) ** 2)) < 40
    assert (first[1] != second[1]).any() == touches_clean
    first, second = (_hazy(clean, spec, 16, depth, plain=True) for spec in (narrow, broad))
    np.testing.assert_array_equal(first, second)


def test_haze_in_linear_light_lifts_shadows_and_is_a_share_of_the_crops_that_are_not_white():
    linear = {"airlight": (0.5, 0.5), "beta": (0.7, 0.7), "linear": 1.0}
    hazy, clean = _hazy(_grey(20), HazeSpec(**linear))
    t, light = np.exp(-0.7), ((np.array([20 / 255, 0.5]) + 0.055) / 1.055) ** 2.4
    expected = 1.055 * (light[0] * t + light[1] * (1 - t)) ** (1 / 2.4) - 0.055
    assert np.abs(hazy - 255 * expected).max() <= 0.51 and (clean == 20).all()
    assert hazy.min() > 20 * t + 127.5 * (1 - t) + 15
    hazy, _ = _hazy(_grey(20), HazeSpec(**linear, white=0.3))
    assert 0.2 < (np.abs(hazy - (20 * t + 255 * (1 - t))) <= 0.51).all((1, 2, 3)).mean() < 0.4
    hazy, _ = _hazy(_grey(20), HazeSpec(**{**linear, "linear": 0.3}))
    assert 0.2 < (np.abs(hazy - 255 * expected) <= 0.51).all((1, 2, 3)).mean() < 0.4
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    hazy, _ = _hazy(every_value, HazeSpec(linear=1.0, clean=1.0))
    assert (hazy == every_value).all()


def test_tint_colours_the_airlight():
    hazy, _ = _hazy(_grey(0), HazeSpec(airlight=(0.8, 0.8), beta=(9, 9), tint=0.1))
    colours = hazy[:, 0, 0] / 255
    assert 0.71 < colours.min() < 0.74 and 0.86 < colours.max() < 0.89
    assert (np.ptp(colours, axis=1) > 0.01).mean() > 0.9


def test_white_clean_flat_and_dim_are_shares_of_the_crops():
    spec = HazeSpec(airlight=(0.5, 0.5), beta=(20, 20), tint=0.1, white=0.3)
    hazy, _ = _hazy(_grey(0), spec)
    white = (hazy == 255).all((1, 2, 3))
    assert 0.2 < white.mean() < 0.4 and hazy[~white].max() < 145
    hazy, clean = _hazy(_grey(40), HazeSpec(clean=0.3, light=(0.4, 0.9)))
    unhazed = np.abs(hazy - clean).max((1, 2, 3)) <= 1  # if dimmed, hazy and clean are rounded apart
    assert 0.2 < unhazed.mean() < 0.4
    scenes = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    hazy, clean = _hazy(scenes, HazeSpec(flat=0.3))
    flat = np.ptp(clean, axis=(1, 2)).max(-1) == 0
    assert 0.2 < flat.mean() < 0.4 and (hazy == clean).all((1, 2, 3)).tolist() == flat.tolist()
    assert np.unique(clean[flat][:, 0, 0], axis=0).shape[0] > flat.sum() / 2
    _, clean = _hazy(_grey(200), HazeSpec(light=(0.4, 0.9), dim=0.3))
    assert 0.2 < (clean < 200).any((1, 2, 3)).mean() < 0.4


def test_light_dims_scene_and_airlight_evenly_or_not_and_leaves_white_haze_alone():
    spec = HazeSpec(airlight=(0.5, 0.5), beta=(0.7, 0.7), white=0.3, light=(0.4, 0.9))
    hazy, clean = _hazy(_grey(200), spec)
    dim = (clean < 200).any((1, 2, 3))
    t = np.exp(-0.7)
    assert 0.6 < dim.mean() < 0.8 and (clean[~dim] == 200).all()
    assert np.abs(hazy[~dim] - (200 * t + 255 * (1 - t))).max() <= 0.51
    light = clean[dim] / 200
    assert np.abs(hazy[dim] - light * (200 * t + 127.5 * (1 - t))).max() <= 1
    assert light.min() >= 0.397 and light.max() <= 0.903
    assert light.min() < 0.45 and light.max() > 0.85
    even = np.ptp(light, axis=(1, 2, 3)) == 0
    assert 0.4 < even.mean() < 0.6
    # Bilinear: along every row and column the same step from pixel to pixel, but for rounding.
    assert all(np.abs(np.diff(200 * light[~even], 2, axis)).max() <= 2 for axis in (1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HazeSpec(airlight=(0.9, 0.8)), "haze.airlight"),
        (lambda: HazeSpec(airlight=(0.9, 1.1)), "haze.airlight"),
        (lambda: HazeSpec(beta=(1.0,)), "haze.beta"),
        (lambda: HazeSpec(gamma=(0.0, 1.0)), "haze.gamma"),
        (lambda: HazeSpec(clean=1.1), "haze.clean"),
        (lambda: HazeSpec(noise=-0.1), "haze.noise"),
        (lambda: HazeSpec(jpeg=(90, 101)), "haze.jpeg"),
        (lambda: CropSpec(size=0), "crop"),
        (lambda: CropSpec(scale=(0.0, 1.0)), "scale"),
    ],
)
def test_bad_specs_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
