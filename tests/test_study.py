"""The study of h-space: decoders that see clean images only and resume, and the pages of all studies."""

import csv
import sys

import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from difflid_jax import study
from difflid_jax.cli import UsageError
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.evaluation.probes import Pairs
from difflid_jax.exhibits import decoders
from difflid_jax.images.files import read_image
from difflid_jax.network.decoder import DecoderSpec
from difflid_jax.tasks.decoder import load_decoder
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
    """Ten scenes of 16×20 with depth."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("scenes")
    for part, shape in (("rgb", (16, 20, 3)), ("depth", (16, 20))):
        (folder / part).mkdir()
        for number in range(10):
            image = random.integers(1, 256, size=shape, dtype=np.uint8)
            Image.fromarray(image).save(folder / part / f"{number}.png")
    return folder


@pytest.fixture
def run(weights, scenes, tmp_path):
    def run(what, *more):
        given = [f"--weights={weights}", "--source=rgbd", f"--data={scenes}", "--frame=whole", "--ids=0-5"]
        options = flags.FlagValues()
        study.define_flags(options)
        arguments = options(["study", *given, f"--output={tmp_path / 'out'}", "--times=0,500", what, *more])
        return study.main(arguments, options)

    return run


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_decoders_are_trained_on_clean_images_tested_on_both_and_kept(run, weights, tmp_path, capsys):
    more = ("--train_ids=6-9", "--steps=3", "--batch_size=2", "--width=16")
    assert run("decoders", *more) == 0
    output = tmp_path / "out"
    assert "4 clean images" in capsys.readouterr().err
    for t in (0, 500):
        decoder = load_decoder(output / "decoders" / f"t{t:03}" / "weights")
        assert decoder.spec == DecoderSpec(feature_channels=32, stages=1, width=16)
    table = rows(output / "decoders.csv")
    assert [row["t"] for row in table] == ["0", "500"] and set(table[0]) == {"t", *decoders.Errors._fields}
    # Two rows for each of three scenes, an image and two timesteps across.
    assert read_image(output / "decoders_grid.png").shape[1] > 3 * 8
    page = (output / "decoders.md").read_text()
    assert f"{float(table[1]['haz_cle']):.3f}" in page and "no hazy image was trained on" in page

    files = [output / "decoders" / f"t{t:03}" / "weights" / store.FILE for t in (0, 500)]
    before = [file.stat().st_mtime_ns for file in files]
    assert run("decoders", *more, "--times=0,500,999") == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    assert len(rows(output / "decoders.csv")) == 3
    with pytest.raises(ValueError, match="holds the run of another config"):
        run("decoders", *more, "--steps=4")
    with pytest.raises(ValueError, match="the data set is not that of the checkpoint"):
        run("decoders", *more, "--train_ids=7-9")
    other = store.read(weights, "unet")
    changed = {name: tensor * 2 for name, tensor in other.tensors.items()}
    store.save(tmp_path / "other", "unet", changed, other.architecture)
    with pytest.raises(ValueError, match="the run was started with the weights"):
        run("decoders", *more, f"--weights={tmp_path / 'other'}")
    with pytest.raises(UsageError, match="2 images are both trained on and tested on"):
        run("decoders", "--train_ids=5-6")
    with pytest.raises(UsageError, match="give --train or --train_ids"):
        run("decoders")


def test_the_curves_are_the_differences_that_they_name():
    hazy, clean = np.full((2, 4, 4, 3), 0.5, np.float32), np.zeros((2, 4, 4, 3), np.float32)
    decoded = np.stack([np.full((2, 4, 4, 3), 0.7), np.full((2, 4, 4, 3), 0.4)]).astype(np.float32)
    # In [0,1] the images are 0.75 and 0.5.
    expected = decoders.Errors(haz_cle=0.3, haz_hazy=0.05, haz_clean=0.2, cle_clean=0.1)
    assert decoders.measure(decoded, Pairs(hazy, clean)) == pytest.approx(expected, abs=1e-6)


def test_the_probe_covers_every_layer_and_timestep_and_a_control(run, tmp_path, capsys):
    assert run("probe", "--limit=5", "--times=500") == 0
    table = rows(tmp_path / "out" / "probe.csv")
    layers = [*(f"encoder:{i}" for i in range(4)), "middle", *(f"decoder:{i}" for i in range(4)), "output"]
    assert [row["layer"] for row in table] == 2 * layers and {row["t"] for row in table} == {"500"}
    assert {row["weights"] for row in table} == {"prior", "random weights"}
    # The output of a new U-Net is zero, of which nothing can be told.
    assert (table[-1]["accuracy"], table[-1]["ratio"]) == ("0.500000", "nan")
    assert all(0 <= float(row["accuracy"]) <= 1 and float(row["airlight_r2"]) <= 1 for row in table)
    assert "R² of A" in capsys.readouterr().out and (tmp_path / "out" / "probe.png").exists()
    with pytest.raises(UsageError, match="--overwrite replaces it"):
        run("probe")


def test_t_sne_shows_h_space_its_control_and_the_images(run, tmp_path):
    assert run("tsne") == 0
    table = rows(tmp_path / "out" / "tsne.csv")
    assert len(table) == 3 * 2 * 2 * 6  # spaces, timesteps, hazy and clean, scenes
    assert {row["space"] for row in table} == {"prior", "random weights", "images"}
    assert read_image(tmp_path / "out" / "tsne.png").shape[1] == 2 * 180


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("probes",), "name one study, decoders, tsne, probe; found probes"),
        (("tsne", "--times=0,1000"), "timesteps from 0 to 999"),
        (("tsne", f"--seed={2**64}"), "seed"),
        (("tsne", "--layer=output"), "random weights; choose another layer"),
        (("tsne", "--frame=oval"), "frame: expected one of nyu_mirrored, nyu, whole, found 'oval'"),
        (("tsne", "--side=9"), "side: expected a multiple of 2, found 9"),
        (("probe", "--limit=4"), "4 scenes; this study needs 5 or more"),
        (("tsne", "--side=9"), r"matplotlib: pip install 'difflid_jax\[figures\]'"),
    ],
)
def test_what_cannot_be_studied_is_refused_by_name(run, arguments, says, monkeypatch):
    if "matplotlib" in says:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises((UsageError, ValueError, flags.Error), match=says):
        run(*arguments)
