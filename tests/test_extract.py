"""The program that writes features, and the Python API behind it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

from difflid_jax import extract
from difflid_jax.cli import UsageError
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.extraction import Extractor
from difflid_jax.images.files import write_png
from difflid_jax.weights import store

REPOSITORY = Path(__file__).resolve().parents[1]
SPEC = UNetSpec(
    image_size=8, model_channels=32, num_res_blocks=1, attention_resolutions=(), channel_mult=(1, 1)
)


@pytest.fixture(scope="module")
def unet(drawn):
    return drawn(lambda: UNet(SPEC, part="encoder", rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def weights(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    store.save(folder, "unet", store.tensors_of(unet), SPEC.to_dict())
    return folder


@pytest.fixture(scope="module")
def extractor(weights):
    return Extractor(weights, times=(500, 0, 700), noise_seed=3)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(256, size=(7, 10, 3), dtype=np.uint8)


def run(*arguments):
    options = extract.define_flags(flags.FlagValues())
    positional = options(["extract", *map(str, arguments)])[1:]
    return extract.main(["", *positional], options)


def test_features_are_h_spaces_of_the_image_at_the_nearest_size(extractor, unet, image):
    features = extractor(image)
    assert list(features) == [500, 0, 700]
    x = jax.image.resize(jnp.asarray(image[None] / 255, jnp.float32) * 2 - 1, (1, 8, 10, 3), "linear")
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), 0), x.shape[1:])
    alphas = Schedule.named("linear").alphas_cumprod[[500, 700]]
    noisy = [np.sqrt(alpha) * x + np.sqrt(1 - alpha) * noise for alpha in alphas]
    expected = jax.jit(lambda x, t: unet.encode(x, t)[0])(
        jnp.concatenate([x, *noisy]), jnp.array([0, 500, 700])
    )
    for t, h in zip((0, 500, 700), expected, strict=True):
        assert features[t].dtype == np.float32 and features[t].shape == (4, 5, 32)
        np.testing.assert_allclose(features[t], h, atol=1e-5)
    assert extractor.channels == 32


def test_floats_in_0_to_1_are_the_same_image(extractor, image):
    from_bytes, from_floats = extractor(image), extractor(image / 255)
    np.testing.assert_allclose(from_bytes[0], from_floats[0], atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), np.nan),
    ],
)
def test_what_is_no_image_is_refused(extractor, wrong):
    with pytest.raises(ValueError, match="expected"):
        extractor(wrong)


def test_layers_and_times_that_are_not_there_are_refused_before_any_work(weights):
    with pytest.raises(ValueError, match="encoder:0 … encoder:3"):
        Extractor(weights, layer="encoder:9")
    with pytest.raises(ValueError, match="--part all"):
        Extractor(weights, layer="decoder:0")
    with pytest.raises(ValueError, match="expected 0 to 999"):
        Extractor(weights, times=(0, 1000))
    with pytest.raises(ValueError, match="at least one"):
        Extractor(weights, times=())


def test_the_program_writes_what_it_could_read_and_names_the_rest(weights, image, tmp_path, capsys):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    write_png(tmp_path / "images" / "a.png", image)
    write_png(tmp_path / "images" / "deep" / "a.png", image[:6])
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    output = tmp_path / "new" / "features.npz"
    status = run(
        tmp_path / "images", "--weights", weights, "--output", output, "--times=0", "--layer=encoder:1"
    )
    assert status == 1
    out, err = capsys.readouterr()
    assert "2 images" in out and "1 of 3 images could not be read" in out
    assert "broken.png" in err
    with np.load(output) as file:
        assert sorted(file.files) == ["a.png/t0", "about", "deep/a.png/t0"]
        expected = Extractor(weights, times=[0], layer="encoder:1")(image)[0]
        np.testing.assert_array_equal(file["a.png/t0"], expected)
        assert file["a.png/t0"].shape == (8, 10, 32)
        about = json.loads(str(file["about"]))
    assert about["weights_sha256"] == store.read(weights, "unet").sha256
    assert about["times"] == [0] and about["layer"] == "encoder:1" and about["noise_seed"] == 0
    assert [path.name for path in output.parent.iterdir()] == ["features.npz"]


def test_the_program_refuses_what_cannot_be(weights, image, tmp_path):
    good = write_png(tmp_path / "a.png", image)
    (tmp_path / "other").mkdir()
    other = write_png(tmp_path / "other" / "a.png", image)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    output = f"--output={tmp_path / 'out.npz'}"
    for arguments, says in [
        ([output, f"--weights={weights}"], "give images"),
        ([good, f"--weights={weights}"], "give images"),
        ([good, output], "give images"),
        ([good, f"--weights={weights}", "--output=x.npy"], "ends in .npz"),
        ([good, f"--weights={weights}", output, "--times=0,x"], "integers separated by commas"),
        ([good, f"--weights={weights}", output, "--times=-1"], "expected 0 to 999"),
        ([good, f"--weights={weights}", output, f"--noise_seed={2**64}"], "noise_seed"),
        ([good, other, f"--weights={weights}", output], "has the same name, a.png"),
        ([tmp_path / "empty", f"--weights={weights}", output], "found none"),
        ([good, f"--weights={tmp_path}", output], "shipped weights"),
        ([bad, f"--weights={weights}", output], "none of the images could be read"),
    ]:
        with pytest.raises((UsageError, ValueError, OSError, flags.Error), match=says):
            run(*arguments)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*"))


def test_the_command_line_works(weights, image, tmp_path):
    write_png(tmp_path / "a.png", image)
    command = [sys.executable, "-m", "difflid_jax.extract", str(tmp_path / "a.png")]
    options = [f"--weights={weights}", f"--output={tmp_path / 'a.npz'}"]
    done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "a.npz") as file:
        assert file["a.png/t500"].shape == (4, 5, 32)
    with pytest.raises(UsageError, match="already exists; --overwrite"):
        run(tmp_path / "a.png", *options)
    done = subprocess.run(
        [*command, "--weights=gone"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
