"""Sampling against the reference's numbers, and what holds for any model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.sampling import Sampler, kept_timesteps, shortened, step_back
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sampling.npz"
SPEC = UNetSpec(
    image_size=8, model_channels=32, num_res_blocks=1, attention_resolutions=(), channel_mult=(1,)
)


def toy_model(x, t):
    """The model of the recorded chains: noise, then variance channels."""
    return jnp.concatenate([0.5 * x + 0.1 * jnp.sin(t / 100), 0.3 * jnp.cos(3 * x)], axis=-1)


@pytest.mark.parametrize(
    ("chain", "schedule", "sampler", "steps", "eta", "channels"),
    [
        ("ddpm", "linear", "ddpm", 7, 0.0, 6),
        ("ddpm_fixed", "cosine", "ddpm", 12, 0.0, 3),
        ("ddim", "cosine", "ddim", 10, 0.0, 6),
        ("ddim_eta", "linear", "ddim", 8, 0.7, 6),
    ],
)
def test_whole_chains_equal_the_references(chain, schedule, sampler, steps, eta, channels):
    """The same noise and model step by step; float32 rounding only."""
    generator = np.random.default_rng(5)

    def draw():
        return jnp.asarray(generator.standard_normal((2, 3, 5, 4)).astype(np.float32).transpose(0, 2, 3, 1))

    with np.load(GOLDEN) as file:
        timesteps, half, end = (file[f"{chain}.{part}"] for part in ("timesteps", "half", "end"))
    base = Schedule.named(schedule)
    np.testing.assert_array_equal(kept_timesteps(1000, steps, sampler), timesteps)
    short = shortened(base, timesteps)
    x = draw()
    for i in reversed(range(steps)):
        output = toy_model(x, float(timesteps[i]))[..., :channels]
        x = step_back(short, sampler, output, x, jnp.asarray(i), draw(), eta)
        if i == steps // 2:
            np.testing.assert_allclose(x, half, atol=2e-5)
    np.testing.assert_allclose(x, end, atol=2e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 2, 37, 50, 601, 999, 1000])
def test_timesteps_are_as_many_as_asked_for(sampler, steps):
    kept = kept_timesteps(1000, steps, sampler)
    assert len(kept) == len(set(kept)) == steps
    assert kept.min() == 0 and kept.max() <= 999 and (np.diff(kept) > 0).all()


def test_all_timesteps_are_the_schedule_itself():
    schedule = Schedule.named("linear")
    np.testing.assert_allclose(shortened(schedule, np.arange(1000)).betas, schedule.betas, rtol=1e-10)


@pytest.mark.parametrize(("steps", "sampler"), [(0, "ddim"), (1001, "ddpm"), (5, "euler")])
def test_impossible_requests_are_refused(steps, sampler):
    with pytest.raises(ValueError, match="expected"):
        kept_timesteps(1000, steps, sampler)


def test_a_perfect_model_of_one_image_samples_that_image():
    """ε̂ = (x − √ᾱ x_0) / √(1−ᾱ): both samplers must end at x_0 from any noise."""
    schedule = Schedule.named("cosine")
    x0 = jax.random.uniform(jax.random.key(1), (2, 4, 4, 3), minval=-0.9, maxval=0.9)
    for sampler in ("ddim", "ddpm"):
        short = shortened(schedule, kept_timesteps(1000, 8, sampler))
        x = jax.random.normal(jax.random.key(2), x0.shape)
        for i in reversed(range(8)):
            alpha = short.alphas_cumprod[i]
            output = (x - np.sqrt(alpha) * x0) / np.sqrt(1 - alpha)
            noise = jax.random.normal(jax.random.key(i), x0.shape)
            x = step_back(short, sampler, output, x, jnp.asarray(i), noise, eta=0.5)
        np.testing.assert_allclose(x, x0, atol=1e-4)


def test_each_sample_comes_from_its_key_alone(drawn):
    unet = drawn(lambda: UNet(SPEC, rngs=nnx.Rngs(0)))
    sampler = Sampler(unet, Schedule.named("linear"), steps=3, sampler="ddpm")
    seen = []

    def watch(steps):
        seen.extend(steps)
        return steps

    keys = jax.random.split(jax.random.key(0), 2)
    first = sampler(keys, (8, 8), watch=watch)
    assert seen == [2, 1, 0]
    assert first.shape == (2, 8, 8, 3) and bool(jnp.isfinite(first).all())
    assert float(jnp.abs(first).max()) <= 1.5
    np.testing.assert_array_equal(first, sampler(keys, (8, 8)))
    np.testing.assert_allclose(first[::-1], sampler(keys[::-1], (8, 8)), atol=1e-5)
    assert not np.array_equal(first[0], first[1])


def test_labels_reach_the_model(drawn):
    unet = drawn(lambda: UNet(dataclasses.replace(SPEC, num_classes=3), rngs=nnx.Rngs(0)))
    sampler = Sampler(unet, Schedule.named("linear"), steps=1)
    one, two = (
        sampler(jax.random.split(jax.random.key(0), 1), (8, 8), jnp.array([label])) for label in (0, 2)
    )
    assert not np.array_equal(one, two)
