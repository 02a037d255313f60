"""The probes of h-space: each measure on features whose answer is known."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from difflid_jax.data.sources import open_data
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.evaluation import probes
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.weights import store

SPEC = UNetSpec(
    image_size=8, model_channels=32, num_res_blocks=1, attention_resolutions=(), channel_mult=(1, 1)
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("prior")
    store.save(folder, "unet", store.tensors_of(drawn(lambda: UNet(SPEC, rngs=nnx.Rngs(0)))), SPEC.to_dict())
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes of 20×24 at one depth; the left half is about black, the right about white."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("scenes")
    for part in ("rgb", "depth"):
        (folder / part).mkdir()
    for number in range(6):
        clean = random.integers(6, size=(20, 24, 3), dtype=np.uint8)
        clean[:, 12:] += 250
        Image.fromarray(clean).save(folder / "rgb" / f"{number}.png")
        Image.fromarray(np.full((20, 24), 200, np.uint8)).save(folder / "depth" / f"{number}.png")
    return str(folder)


@pytest.fixture
def features():
    """40 scenes that differ in 6 channels; hazy and clean are one."""
    h = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    return np.stack([h, h])


def test_pairs_are_whole_scenes_with_haze_of_the_beta_and_airlight_given(scenes):
    hazy, clean, beta, airlight = probes.make_pairs(open_data("rgbd", scenes, frame="whole"), 8, seed=3)
    assert hazy.shape == clean.shape == (6, 8, 8, 3) and len(set(beta)) == len(set(airlight)) == 6
    assert clean[:, :, :3].max() < -0.94 and clean[:, :, 5:].min() > 0.94
    # I = J·t + A(1 − t), all at the greatest depth: contrast shrinks by t = exp(−β), black becomes A(1 − t).
    contrast = [x[:, :, 5:].mean((1, 2, 3)) - x[:, :, :3].mean((1, 2, 3)) for x in (hazy, clean)]
    np.testing.assert_allclose(contrast[0] / contrast[1], np.exp(-beta), atol=1 / 255)
    dark = [(x[:, :, :2].mean((1, 2, 3)) + 1) / 2 for x in (hazy, clean)]
    t = np.exp(-beta)
    np.testing.assert_allclose((dark[0] - dark[1] * t) / (1 - t), airlight, atol=2 / 255)


def test_pairs_on_disk_have_no_beta_and_a_clean_image_that_is_shared_is_trained_on_once(tmp_path):
    rng = np.random.default_rng(0)
    for folder, names in (("hazy", ("1_1", "1_2", "2_1", "2_2")), ("clear", ("1", "2"))):
        (tmp_path / folder).mkdir()
        for name in names:
            image = rng.integers(256, size=(16, 24, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
    data = open_data("folders", tmp_path, dataset="its")
    pairs = probes.make_pairs(data, 8, seed=0)
    assert pairs.hazy.shape == (4, 8, 8, 3) and pairs.beta is None and pairs.airlight is None
    np.testing.assert_array_equal(pairs.clean[0], pairs.clean[1])
    images = probes.clean_images(data, 8)
    assert images.kind == "images" and len(images) == 2
    found = images.store.read(images.elements[0, 0]) / 127.5 - 1
    np.testing.assert_allclose(found, pairs.clean[0], atol=1 / 255)


def test_features_are_those_of_the_images_each_with_its_own_noise(weights):
    """Nine scenes are more than a batch, three timesteps more than a pass."""
    prior = load_prior(weights, part="all")
    clean = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 3)).astype(np.float32)
    layers = ("middle", "encoder:0", "output")
    found = probes.layer_features(prior, probes.Pairs(clean, clean), (0, 500, 999), layers, seed=5)
    assert list(found) == [(layer, t) for layer in layers for t in (0, 500, 999)]
    assert {h.shape for h in found.values()} == {(2, 9, 32), (2, 9, 6)}
    # h_space draws its noise from the same key.
    key = jax.random.fold_in(jax.random.key(5), 0)
    at_0, at_500 = h_space(prior.unet, prior.schedule, np.concatenate([clean[:8]] * 2), key, HSpaceSpec())
    for t, h in ((0, at_0), (500, at_500)):
        h = h.mean((1, 2)).reshape(2, 8, -1)
        np.testing.assert_allclose(found["middle", t][:, :8], h, rtol=1e-4, atol=1e-5)
    # The images of a pair are equal here: what is between them is the noise.
    for t in (500, 999):
        assert np.abs(found["middle", t][0] - found["middle", t][1]).max(-1).min() > 1e-3


def test_distances_tell_pairs_from_strangers_in_any_unit_of_a_channel(features):
    within, between = probes.distances(features)
    assert within == 0 and between > 1
    strangers = np.stack([features[0], features[1][::-1]])
    within, between = probes.distances(strangers)
    assert 0.8 < within / between < 1.2
    strangers[..., 0] *= 1000
    np.testing.assert_allclose(probes.distances(strangers), (within, between), rtol=1e-4)
    with pytest.raises(ValueError, match="all scenes are equal"):
        probes.distances(np.zeros_like(features))


def test_the_probe_finds_haze_and_nothing_in_the_scenes_alone(features):
    # A probe that is shown one partner cannot know the other, since both lie in one fold.
    assert probes.probe_accuracy(features) == pytest.approx(0.5)
    hazy = features + np.array([[[6.0]], [[0.0]]], np.float32) * np.eye(6, dtype=np.float32)[0]
    assert probes.probe_accuracy(hazy) > 0.95
    for count in (5, 23):
        folds = probes._folds(count)
        assert (np.diff(folds) >= 0).all() and np.ptp(np.bincount(folds, minlength=5)) <= 1
    with pytest.raises(ValueError, match="at least 5 scenes"):
        probes.probe_accuracy(features[:, :4])


def test_beta_is_read_where_it_is_and_not_elsewhere(features):
    beta = np.random.default_rng(1).uniform(0.6, 1.8, 40)
    assert probes.regression_r2(features, beta) < 0.2
    features[0, :, 2] = 3 * beta - 1
    assert probes.regression_r2(features, beta) > 0.95


def test_a_hazy_image_is_found_by_its_content(features):
    assert probes.retrieval(features) == 1
    assert probes.retrieval(np.stack([features[0], features[1][::-1]])) == 0


@pytest.mark.slow
def test_the_shipped_prior_knows_scenes_and_sees_haze(shared):
    """On 20 validation scenes: partners are nearer than strangers at t = 0, haze shows at t = 500."""
    data = open_data("rgbd", shared / "data" / "nyu_v2_labelled_train.tar", ids=(1300, 1319))
    pairs = probes.make_pairs(data, 64, seed=0)
    h = probes.layer_features(load_prior("photos64"), pairs, (0, 500), ["middle"], seed=0)
    within, between = probes.distances(h["middle", 0])
    assert within < between
    assert probes.probe_accuracy(h["middle", 500]) > 0.6
