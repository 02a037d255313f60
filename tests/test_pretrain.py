"""Training a prior: what the loss is, and that a run writes weights that the other programs can use."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from difflid_jax.config import experiment, schema
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet
from difflid_jax.features.prior import load_prior
from difflid_jax.tasks import prior
from difflid_jax.training.loss import diffusion_loss


@pytest.fixture
def config(tmp_path):
    """Two steps of a tiny U-Net on six small images."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
    config = schema.default_prior()
    config.data.train = config.data.validation = str(tmp_path / "images")
    config.data.crop, config.data.batch_size = 16, 2
    config.unet.channel_mult, config.unet.attention_resolutions = (1, 2), (2,)
    config.training.steps = config.training.checkpoint_every = 2
    config.training.log_every = 1
    config.evaluation.batches, config.evaluation.sample_steps = 1, 2
    return config


def test_a_run_ends_in_weights_samples_and_losses_and_can_be_resumed(config, tmp_path):
    run = experiment.resolve_prior(config)
    workdir = tmp_path / "run"
    assert prior.train(run, workdir) == 0
    unet, _, _ = load_prior(workdir / "weights", part="all")
    assert unet.spec == run.unet
    assert (workdir / "sheets" / "step_000002.png").exists()
    scores = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in scores if line["kind"] == "train"] == [1, 2]
    (validation,) = (line for line in scores if line["kind"] == "validation")
    # An untrained U-Net predicts no noise at all: E‖ε‖² = 1 at every timestep.
    assert validation["loss"] == pytest.approx(1, abs=0.2) and "loss_t050" in validation

    before = load_prior(workdir / "weights").sha256
    assert prior.train(run, workdir) == 0  # finished: nothing is changed
    assert load_prior(workdir / "weights").sha256 == before

    config.init = str(workdir / "weights")
    run = experiment.resolve_prior(config)
    graph, params, _ = prior.first_unet(run)
    found = nnx.merge(graph, params).time_embed[0].kernel
    np.testing.assert_array_equal(found, unet.time_embed[0].kernel)

    config.unet.channel_mult = (1, 3)
    run = experiment.resolve_prior(config)
    with pytest.raises(ValueError, match=r"config\.init"):
        prior.first_unet(run)


def test_the_loss_of_a_new_u_net_is_the_noise_itself(config):
    graph, params = nnx.split(UNet(experiment.resolve_prior(config).unet, rngs=nnx.Rngs(0)))
    loss = diffusion_loss(graph, Schedule.named(), 0.0, drops=False)
    batch = {"image": jnp.zeros((4, 16, 16, 3), jnp.uint8)}
    total, metrics = loss(params, None, batch, jax.random.key(0), 0)
    assert float(total) == pytest.approx(1, abs=0.1) == float(metrics["noise_loss"])
