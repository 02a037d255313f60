"""What the package computes does not change: its results against values stored from commit f126728.

`golden/unchanged.npz` holds what `h_space` and `trained` gave then, and what `restored` gave when its weights
were shipped, on CPU, with the XLA flags of `conftest.py`. On the machine that stored them they are reproduced
bit for bit; another CPU, or an equal form of a sum, rounds differently, by less than 1e-5 of a value's scale.
Image sizes are multiples of the network's stride, so no value depends on padding.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from difflid_jax import load_restorer
from difflid_jax.config import experiment, schema
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.extraction import Extractor
from difflid_jax.restoration import tiles
from difflid_jax.tasks import restorer
from difflid_jax.weights import store

GOLDEN = Path(__file__).parent / "golden"
STORED = GOLDEN / "unchanged.npz"
PRIOR = UNetSpec(16, 32, 1, (), (1,), num_head_channels=16)
STEPS = 8


def image(name: str) -> np.ndarray:
    """A committed photograph, (96,96,3) uint8."""
    return np.asarray(Image.open(GOLDEN / f"{name}.png").convert("RGB"))


def restored() -> dict[str, np.ndarray]:
    """The shipped restorer on an image in one piece, and on one in tiles with features of a smaller view."""
    tiled = load_restorer("haze", tile=tiles.LEAST_TILE)
    found = {"whole": tiled(unit(image("astronaut_degraded")))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "WORKING_PIXELS", 96 * 96)
        found["tiled"] = tiled(unit(image("coffee_degraded").repeat(3, 0).repeat(3, 1)))[::5, ::5]
    return found


def unit(pixels: np.ndarray) -> np.ndarray:
    return np.float32(pixels) / 255


def h_space() -> dict[str, np.ndarray]:
    """The shipped prior's features at both timesteps."""
    maps = Extractor("photos64", times=(0, 500))(image("astronaut_degraded"))
    return {f"h_{t}": h[::2, ::2] for t, h in maps.items()}


def trained(folder: Path, *, interrupted: bool) -> dict[str, np.ndarray]:
    """Losses and final parameters of a small network trained from its seed; with a resume in between."""
    unet = nnx.eval_shape(lambda: UNet(PRIOR, part="encoder", rngs=nnx.Rngs(0)))
    generator = np.random.default_rng(0)
    shapes = sorted(store.shapes_of(unet).items())
    tensors = {name: 0.1 * generator.standard_normal(shape, np.float32) for name, shape in shapes}
    store.save(folder / "prior", "unet", tensors, PRIOR.to_dict())
    for role, kind in (("hazy", "degraded"), ("clean", "clean")):
        (folder / "data" / role).mkdir(parents=True)
        for name in ("astronaut", "coffee"):
            Image.fromarray(image(f"{name}_{kind}")).save(folder / "data" / role / f"{name}.png")
    config = schema.default()
    config.prior, config.data.train = str(folder / "prior"), str(folder / "data")
    config.data.dataset, config.data.crop, config.data.batch_size = "folders", 16, 2
    config.network.preset, config.network.widths, config.network.heads = "", (8, 16), 2
    config.optimizer.learning_rate, config.optimizer.ema = 2e-3, 0.9
    config.training.steps, config.training.log_every = STEPS, 1
    config.training.checkpoint_every, config.training.tensorboard = 4, False
    if interrupted:
        config.training.minutes = 1e-9  # stops after its first steps
        assert restorer.train(experiment.resolve(config), folder / "run") == 0
        assert len(_losses(folder / "run")) < STEPS
        config.training.minutes = 0.0
    assert restorer.train(experiment.resolve(config), folder / "run") == 0
    parameters = store.read(folder / "run" / "weights", "restorer").tensors
    return {"losses": np.array(_losses(folder / "run"))} | {f"p_{k}": v for k, v in parameters.items()}


def _losses(workdir: Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def assert_unchanged(found: dict[str, np.ndarray]) -> None:
    with np.load(STORED) as stored:
        for name, value in found.items():
            expected = stored[name]
            assert value.shape == expected.shape, name
            error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
            assert error <= 1e-5, f"{name}: relative error {error:.1e}"


def test_shipped_weights_restore_the_same_images():
    assert_unchanged(restored())


def test_the_shipped_prior_gives_the_same_features():
    assert_unchanged(h_space())


def test_training_and_its_resumed_twin_give_the_same_weights(tmp_path):
    undisturbed = trained(tmp_path / "undisturbed", interrupted=False)
    # Softmax is blind to the bias of K: its gradient is rounding, which Adam brings to the size of a step.
    assert_unchanged({n: v for n, v in undisturbed.items() if not n.endswith("content.key.bias")})
    resumed = trained(tmp_path / "resumed", interrupted=True)
    for name, value in undisturbed.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
