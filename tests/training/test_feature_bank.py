"""Kept features are those that the step would compute with the same noise."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.data.augment import Augment, CropSpec, HazeSpec, reduced
from difflid_jax.data.sources import open_data
from difflid_jax.features.build import build_features
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec
from difflid_jax.training import feature_bank
from difflid_jax.training.loss import restoration_loss

SPEC = HSpaceSpec(side=16)
PLUS = (
    "--config.network.kind=plus",
    "--config.network.widths=(8,)",
    "--config.features.side=16",
    "--config.data.view=True",
)
CROP = CropSpec(16, view=16)


@pytest.fixture
def pairs(tiny):
    return open_data("folders", str(tiny.prior.parent / "train"), dataset="folders", progress=False)


def test_the_loss_with_kept_features_equals_that_which_computes_them(tiny, pairs, tmp_path):
    features = build_features("h_space", str(tiny.prior), SPEC)
    data = feature_bank.keep_features(pairs, tmp_path / "bank", features, SPEC, noises=1, seed=3)
    network = DiffLI2DPlus(
        PlusSpec(widths=(8,), heads=2, feature_channels=features.channels), rngs=nnx.Rngs(0)
    )
    params = jax.tree.map(lambda x: x + 0.01, nnx.state(network))  # its zeros would hide the features
    loss = jax.jit(restoration_loss(nnx.graphdef(network), features.apply))
    mirrored = set()
    for element in range(5):
        kept, computed = (
            Augment(images, CROP, HazeSpec())(element, np.random.default_rng(element))
            for images in (data, pairs)
        )
        np.testing.assert_array_equal(kept["hazy"], computed["hazy"])
        whole = reduced(pairs.store.read(pairs.elements[element][0]), 16)
        flip = not np.array_equal(computed["view"], whole)
        mirrored.add(flip)
        key = feature_bank.noise_key(3, element, flip, 0)
        results = []
        for crop in (kept, computed):
            batch = {name: value[None] for name, value in crop.items()}
            results.append(loss(params, features.frozen, batch, key, 0)[0])
        np.testing.assert_allclose(*results, rtol=1e-6)
    assert mirrored == {False, True}


def test_every_noise_is_drawn_and_only_what_is_missing_is_computed(tiny, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_bank, "_CHUNK", 2)
    features = build_features("h_space", str(tiny.prior), SPEC, dtype=jnp.bfloat16)

    def keep(noises):
        return feature_bank.keep_features(pairs, tmp_path, features, SPEC, noises=noises, seed=0).features

    bank = keep(3)
    drawn = [bank.draw(4, True, np.random.default_rng(i)) for i in range(20)]
    assert len({maps["h_haze"].tobytes() for maps in drawn}) == 3
    assert len({maps["h_content"].tobytes() for maps in drawn}) == 1  # t₁ = 0 has no noise
    assert drawn[0]["h_haze"].dtype == jnp.bfloat16
    written = {path: path.stat().st_mtime_ns for path in bank.folder.iterdir()}
    assert len(written) == 3
    before = bank.path(1).read_bytes()
    bank.path(1).write_bytes(before[:-1])  # as after a power cut
    bank.path(2).unlink()
    assert keep(3) == bank and bank.path(1).read_bytes() == before
    assert all(path.stat().st_mtime_ns == time for path, time in written.items() if path == bank.path(0))
    monkeypatch.setattr(feature_bank.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"has 0\.00 GB free, but the features of 5 images with 4 noises need"):
        keep(4)


def test_a_run_with_kept_features(tiny, tmp_path):
    given = (*PLUS, "--config.features.cache=2", "--config.training.steps=2")
    assert tiny.train(tmp_path / "run", *given) == 0
    assert len(list((tmp_path / "run" / "cache" / "features").glob("*/0.npy"))) == 1
    with pytest.raises(ValueError, match=r"features need a folder; give config\.data\.cache one"):
        tiny.train(tmp_path / "other", *given, "--config.data.cache=off")
    for flag, reason in (
        ("--config.data.view=False", "for features of whole images"),
        ("--config.data.source=photographs", "makes the haze of every crop anew"),
        ("--config.data.region=(0.5,1.0)", "features of another region"),
    ):
        with pytest.raises(ValueError, match=rf"config\.features\.cache has no effect: .*{reason}"):
            tiny.experiment(*given, flag)
