"""Training objectives of a diffusion model: the noise (paper Eq. 4) and, as in OpenAI's code, its variance.

Simple loss (Eq. 4; Ho et al. 2020):   E ‖ε − ε_θ(x_t, t)‖²
Hybrid loss (Nichol & Dhariwal 2021):  simple + λ · L_vlb, where L_vlb trains the variance channels only.
Reference: guided_diffusion/gaussian_diffusion.py, training_losses and _vb_terms_bpd.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from difflid_jax.diffusion.schedule import Schedule

SCORED_TIMES = tuple(range(50, 1000, 100))  # the middle of each hundred


def split_output(
    output: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"] | None]:
    """(noise, variance channels or None) of a U-Net output with 3 or 6 channels; ValueError for others."""
    channels = output.shape[-1]
    if channels == 3:
        return output, None
    if channels == 6:
        return output[..., :3], output[..., 3:]
    raise ValueError(f"U-Net output: expected 3 or 6 channels, found {channels}")


def simple_loss(predicted: Float[Array, "b h w 3"], noise: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Eq. 4: mean squared error per image."""
    return jnp.mean(jnp.square(predicted.astype(jnp.float32) - noise), axis=(1, 2, 3))


def loss_by_time(graph: nnx.GraphDef, schedule: Schedule) -> Callable[..., Iterator[tuple[int, float]]]:
    """measure(parameters, batches) for the U-Net of `graph`: (t, mean of Eq. 4) for every batch and t.

    batches: images x_0 (B,H,W,3) in [-1,1] of one size; t: `SCORED_TIMES`. The noise depends only on the
    batch's number and t, so that all models are measured with the same noise. Class-conditional models get
    class 0. Compiled once.
    """

    @jax.jit
    def loss(parameters, x0, t, key):
        unet = nnx.merge(graph, parameters)
        noise, times = jax.random.normal(key, x0.shape, jnp.float32), jnp.full(len(x0), t)
        labels = None if unet.spec.num_classes is None else jnp.zeros(len(x0), jnp.int32)
        output = unet(schedule.sample_noisy(x0, times, noise), times, labels)
        return simple_loss(split_output(output)[0], noise).mean()

    def measure(parameters, batches: Iterable[jax.Array]) -> Iterator[tuple[int, float]]:
        for number, x0 in enumerate(batches):
            for t in (t for t in SCORED_TIMES if t < schedule.steps):
                key = jax.random.fold_in(jax.random.key(number), t)
                yield t, float(loss(parameters, x0, t, key))

    return measure


def learned_log_variance(
    schedule: Schedule, variance: Float[Array, "b h w 3"], t: Int[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """log Σ_θ: v in [-1,1] interpolates between log β̃_t and log β_t (Nichol & Dhariwal, Eq. 15)."""
    low, high = schedule.at(schedule.posterior_log_variance, t), schedule.at(np.log(schedule.betas), t)
    fraction = (variance.astype(jnp.float32) + 1) / 2
    return fraction * high + (1 - fraction) * low


def variational_bound(
    schedule: Schedule,
    x0: Float[Array, "b h w 3"],
    x_t: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    predicted: Float[Array, "b h w 3"],
    variance: Float[Array, "b h w 3"],
) -> Float[Array, " b"]:
    """L_t of the variational bound in bits per dimension: KL for t > 0, decoder likelihood at t = 0.

    x0 in [-1,1] holds 8-bit values. The x_0 implied by the prediction is not clipped, as in the reference's
    training.
    """
    true_mean = schedule.posterior_mean(x0, x_t, t)
    true_log_variance = schedule.at(schedule.posterior_log_variance, t)
    mean = schedule.posterior_mean(schedule.x0_from_noise(x_t, t, predicted), x_t, t)
    log_variance = learned_log_variance(schedule, variance, t)
    kl = 0.5 * (
        -1
        + log_variance
        - true_log_variance
        + jnp.exp(true_log_variance - log_variance)
        + jnp.square(true_mean - mean) * jnp.exp(-log_variance)
    )
    likelihood = -_discretised_log_likelihood(x0, mean, 0.5 * log_variance)
    bits = jnp.where(t[:, None, None, None] == 0, likelihood, kl) / np.log(2.0)
    return bits.mean((1, 2, 3))


def hybrid_loss(
    schedule: Schedule,
    x0: Float[Array, "b h w 3"],
    x_t: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    noise: Float[Array, "b h w 3"],
    output: Float[Array, "b h w c"],
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """(simple loss, variational bound) per image of a U-Net output; the loss is their weighted sum.

    The bound is 0 without variance channels. It has no gradient with respect to the noise prediction, so that
    it trains the variance only (the reference's "frozen_out").
    """
    predicted, variance = split_output(output.astype(jnp.float32))
    simple = simple_loss(predicted, noise)
    if variance is None:
        return simple, jnp.zeros_like(simple)
    frozen = jax.lax.stop_gradient(predicted)
    return simple, variational_bound(schedule, x0, x_t, t, frozen, variance)


def _discretised_log_likelihood(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
    """log P(x) for 8-bit x in [-1,1] under a Gaussian cut into bins of 2/255, open at both ends."""
    inverse = jnp.exp(-log_scale)
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    inside = jnp.log(jnp.maximum(upper - lower, 1e-12))
    at_white = jnp.log(jnp.maximum(1 - lower, 1e-12))
    at_black = jnp.log(jnp.maximum(upper, 1e-12))
    return jnp.where(x < -0.999, at_black, jnp.where(x > 0.999, at_white, inside))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """The tanh approximation that the reference uses (approx_standard_normal_cdf)."""
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
