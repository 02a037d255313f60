"""The check of a diffusion prior: each measure on features whose answer is known, and the script."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from difflid_jax.cli import UsageError
from difflid_jax.data.sources import open_data
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.evaluation import probes
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.images.files import read_image
from difflid_jax.weights import store

prior_check = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "prior_check.py"))
)
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


def test_pairs_are_whole_scenes_with_haze_of_the_beta_that_is_told(scenes):
    hazy, clean, beta = probes.make_pairs(open_data("rgbd", scenes, frame="whole"), 8, seed=3)
    assert hazy.shape == clean.shape == (6, 8, 8, 3) and len(set(beta)) == 6
    assert clean[:, :, :3].max() < -0.94 and clean[:, :, 5:].min() > 0.94
    # I = J·t + A(1 − t): contrast shrinks by t = exp(−β), as all lies at the greatest depth.
    contrast = [x[:, :, 5:].mean((1, 2, 3)) - x[:, :, :3].mean((1, 2, 3)) for x in (hazy, clean)]
    np.testing.assert_allclose(contrast[0] / contrast[1], np.exp(-beta), atol=1 / 255)


def test_h_spaces_are_those_of_the_images_each_with_its_own_noise(weights):
    """Nine scenes are more than a batch, three timesteps more than a pass."""
    prior = load_prior(weights)
    clean = np.random.default_rng(0).uniform(-1, 1, (9, 8, 8, 3)).astype(np.float32)
    found = probes.h_spaces(prior, probes.Pairs(clean, clean, np.ones(9)), (0, 500, 999), seed=5)
    assert list(found) == [0, 500, 999] and all(h.shape == (2, 9, 32) for h in found.values())
    h, _ = h_space(prior.unet, prior.schedule, clean, jax.random.key(0), HSpaceSpec())
    np.testing.assert_allclose(found[0], np.stack([h.mean((1, 2))] * 2), rtol=1e-4, atol=1e-5)
    # The images of a pair are equal here: what is between them is the noise.
    for t in (500, 999):
        assert np.abs(found[t][0] - found[t][1]).max(-1).min() > 1e-3


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
    assert probes.haze_r2(features, beta) < 0.2
    features[0, :, 2] = 3 * beta - 1
    assert probes.haze_r2(features, beta) > 0.95


def test_the_script_measures_a_prior_and_its_untrained_twin(weights, scenes, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = [
        f"--weights={weights}",
        f"--scenes={scenes}",
        "--frame=whole",
        f"--output={output}",
        "--side=8",
        "--times=0,500,999",
        "--samples=5",
        "--steps=2",
        "--limit=5",
    ]

    def run(*more):
        options = flags.FlagValues()
        prior_check.define_flags(options)
        options(["prior_check", *arguments, *more])
        prior_check.check_prior(options)

    run()
    written, text = json.loads((output / "prior.json").read_text()), (output / "prior.md").read_text()
    assert written["scenes"] == ["0", "1", "2", "3", "4"] and text in capsys.readouterr().out
    trained, untrained = written["priors"].values()
    assert len(trained["sha256"]) == 64 and untrained["sha256"] == "random:0"
    for measured in (trained, untrained):
        for what in ("ratio", "accuracy", "beta_r2"):
            assert list(measured[what]) == ["0", "500", "999"]
            assert f"{measured[what]['500']:.3f}" in text
        assert list(measured["loss"]) == [str(t) for t in range(50, 1000, 100)]
    # Untrained, a U-Net predicts no noise at all: E‖ε‖² = 1. Five crops of 8×8 have 960 values.
    assert untrained["loss"].values() == pytest.approx([1] * 10, abs=0.2)
    assert untrained["loss"] != trained["loss"]
    assert read_image(output / "tsne.png").shape[1] == 3 * 220
    assert {file.name for file in output.iterdir()} == {
        *("prior.json", "prior.md", "curves.png", "samples.png", "tsne.png")
    }
    for more, says in [
        ([], "--overwrite replaces it"),
        (["--overwrite", "--times=0,1000"], "timesteps from 0 to 999"),
        (["--overwrite", "--side=9"], "side: expected a multiple of 2, found 9"),
    ]:
        with pytest.raises((UsageError, ValueError), match=says):
            run(*more)


@pytest.mark.slow
def test_the_shipped_prior_knows_scenes_and_sees_haze(shared):
    """On 20 validation scenes: partners are nearer than strangers at t = 0, haze shows at t = 500."""
    data = open_data("rgbd", shared / "data" / "nyu_v2_labelled_train.tar", ids=(1300, 1319))
    pairs = probes.make_pairs(data, 64, seed=0)
    h = probes.h_spaces(load_prior("photos64"), pairs, (0, 500), seed=0)
    within, between = probes.distances(h[0])
    assert within < between
    assert probes.probe_accuracy(h[500]) > 0.6
