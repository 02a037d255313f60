"""The program that shows what a diffusion model draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx

from difflid_jax import sample
from difflid_jax.cli import UsageError
from difflid_jax.diffusion.sampling import kept_timesteps, shortened, step_back
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.images.files import read_image
from difflid_jax.weights import store

SPEC = UNetSpec(
    image_size=8, model_channels=32, num_res_blocks=1, attention_resolutions=(), channel_mult=(1,)
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory, drawn):
    """Folders of a model with and one without classes, and of an encoder."""
    folders = {}
    for name, classes in (("plain", None), ("classes", 3)):
        spec = dataclasses.replace(SPEC, num_classes=classes)
        unet = drawn(lambda spec=spec: UNet(spec, rngs=nnx.Rngs(0)))
        # No noise is predicted, so that what is drawn is known.
        tensors = {
            name: 0 * t if name.startswith("out_conv") else t for name, t in store.tensors_of(unet).items()
        }
        folders[name] = tmp_path_factory.mktemp(name)
        store.save(folders[name], "unet", tensors, spec.to_dict())
    folders["encoder"] = tmp_path_factory.mktemp("encoder")
    encoder = store.tensors_of(drawn(lambda: UNet(SPEC, part="encoder", rngs=nnx.Rngs(0))))
    store.save(folders["encoder"], "unet", encoder, SPEC.to_dict())
    return folders


def run(*arguments):
    options = sample.define_flags(flags.FlagValues())
    options(["sample", *map(str, arguments)])
    sample.main([""], options)


def test_the_sheet_shows_what_the_sampler_draws(weights, tmp_path, capsys):
    """Three images in two batches, from a model whose every step is known."""
    sheet = tmp_path / "new" / "sheet.png"
    run(f"--weights={weights['plain']}", f"--output={sheet}", "--count=3", "--batch_size=2", "--steps=2")
    assert "3 samples of 8×8, 2 steps ddim" in capsys.readouterr().out
    with pytest.raises(UsageError, match="already exists; --overwrite"):
        run(f"--weights={weights['plain']}", f"--output={sheet}")
    schedule = shortened(Schedule.named("linear"), kept_timesteps(1000, 2, "ddim"))
    keys = [jax.random.fold_in(key, 2) for key in jax.random.split(jax.random.key(0), 3)]
    x = jnp.stack([jax.random.normal(key, (8, 8, 3)) for key in keys])
    for i in (1, 0):
        x = step_back(schedule, "ddim", jnp.zeros((3, 8, 8, 6)), x, jnp.asarray(i), x)
    expected = np.clip((np.asarray(x) + 1) / 2, 0, 1) * 255
    image = read_image(sheet).astype(float)
    assert image.shape == (40, 40, 3)
    for corner, tile in zip([(8, 8), (8, 24), (24, 8)], expected, strict=True):
        top, left = corner
        np.testing.assert_allclose(image[top : top + 8, left : left + 8], tile, atol=1)


def test_classes_are_given_or_drawn(weights, tmp_path):
    sheet = tmp_path / "sheet.png"
    folder = f"--weights={weights['classes']}"
    run(folder, f"--output={sheet}", "--count=3", "--steps=1", "--labels=0,2", "--sampler=ddpm")
    assert sheet.exists()
    assert list(sample._labels(["0", "2"], 3, 3, 0)) == [0, 2, 0]
    assert set(sample._labels([], 3, 50, 0)) == {0, 1, 2}


def test_requests_that_cannot_be_met_are_refused(weights, tmp_path):
    plain, output = f"--weights={weights['plain']}", f"--output={tmp_path / 'x.png'}"
    for arguments, says in [
        ([plain], "give --weights"),
        ([output], "give --weights"),
        ([plain, "--output=x.jpg"], "ends in .png"),
        ([f"--weights={weights['encoder']}", output], "--part all"),
        ([plain, output, "--steps=1001"], "expected 1 to 1000"),
        ([plain, output, "--sampler=ddpm", "--eta=0.5"], "--eta is the noise of ddim"),
        ([plain, output, f"--seed={2**64}"], "seed"),
        ([plain, output, "--labels=1"], "not class-conditional"),
        ([f"--weights={weights['classes']}", output, "--labels=3"], "expected 0 to 2"),
        ([f"--weights={weights['classes']}", output, "--labels=cat"], "integers separated by commas"),
    ]:
        with pytest.raises((UsageError, ValueError, flags.Error), match=says):
            run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_overflows_draws_no_sheet(weights, tmp_path):
    tensors = {name: 1e30 * value for name, value in store.read(weights["plain"], "unet").tensors.items()}
    store.save(tmp_path / "broken", "unet", tensors, SPEC.to_dict())
    with pytest.raises(ValueError, match="2 of 2 samples are not finite"):
        run(f"--weights={tmp_path / 'broken'}", f"--output={tmp_path / 'x.png'}", "--count=2", "--steps=1")
    assert not (tmp_path / "x.png").exists()
