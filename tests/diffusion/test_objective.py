"""The DDPM loss (Eq. 4) and the learned-variance bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.diffusion import objective
from difflid_jax.diffusion.schedule import Schedule

SCHEDULE = Schedule.named("linear")


def drawn(t, channels=6, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    x0 = jnp.round(jax.random.uniform(keys[0], (2, 8, 8, 3)) * 255) / 127.5 - 1
    noise = jax.random.normal(keys[1], x0.shape)
    t = jnp.full(2, t)
    return x0, SCHEDULE.sample_noisy(x0, t, noise), t, noise, jax.random.normal(keys[2], (2, 8, 8, channels))


def test_perfect_noise_has_no_loss():
    *_, noise, _ = drawn(10)
    np.testing.assert_array_equal(objective.simple_loss(noise, noise), 0)


def test_the_bound_vanishes_for_the_true_posterior():
    """With the true noise and v = -1 (variance β̃_t), the model's step is the posterior: KL = 0."""
    x0, x_t, t, noise, _ = drawn(300)
    bound = objective.variational_bound(SCHEDULE, x0, x_t, t, noise, jnp.full_like(noise, -1.0))
    np.testing.assert_allclose(bound, 0, atol=1e-5)


def test_the_bound_at_zero_is_a_likelihood_in_bits():
    """Of 256 values the truth gets at most all the probability: 0 ≤ bits; a wrong mean costs more."""
    x0, x_t, t, noise, _ = drawn(0)
    variance = jnp.zeros_like(noise)
    right = objective.variational_bound(SCHEDULE, x0, x_t, t, noise, variance)
    wrong = objective.variational_bound(SCHEDULE, x0, x_t, t, -3 * noise, variance)
    assert (right > 0).all() and (wrong > right).all()


def test_the_bound_trains_the_variance_alone():
    x0, x_t, t, noise, output = drawn(300)
    gradient = jax.grad(lambda o: objective.hybrid_loss(SCHEDULE, x0, x_t, t, noise, o)[1].sum())(output)
    assert not gradient[..., :3].any() and gradient[..., 3:].any()


def test_without_variance_channels_there_is_no_bound():
    x0, x_t, t, noise, output = drawn(300, channels=3)
    simple, bound = objective.hybrid_loss(SCHEDULE, x0, x_t, t, noise, output)
    assert not bound.any() and (simple > 0).all()


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="expected 3 or 6 channels, found 4"):
        objective.split_output(jnp.zeros((1, 2, 2, 4)))
