"""Noise schedules and the Gaussian identities of Eqs. 1–3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.diffusion.schedule import Schedule


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_equal_openais(name, golden):
    reference = np.load(golden / "schedule.npz")
    schedule = Schedule.named(name)
    np.testing.assert_allclose(schedule.betas, reference[f"{name}.betas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        schedule.alphas_cumprod, reference[f"{name}.alphas_cumprod"], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_alpha_bar_is_the_product_of_the_steps(name):
    schedule = Schedule.named(name)
    assert np.all((schedule.betas > 0) & (schedule.betas < 1))
    np.testing.assert_allclose(schedule.alphas_cumprod[-1], np.prod(1 - schedule.betas), rtol=1e-9)


def test_fewer_linear_steps_reach_the_same_noise():
    """betas scale with 1000 / steps, so that the process ends at nearly the same ᾱ."""
    assert Schedule.named("linear", 500).alphas_cumprod[-1] == pytest.approx(
        Schedule.named("linear").alphas_cumprod[-1], rel=0.1
    )


def test_noise_and_x0_are_inverse():
    schedule = Schedule.named()
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 4, 3))
    t = jnp.array([0, 10, 300, 700])
    x_t = schedule.sample_noisy(x0, t, noise)
    np.testing.assert_allclose(schedule.x0_from_noise(x_t, t, noise), x0, atol=2e-4)


def test_posterior_is_bayes_rule():
    """q(x_{t-1}|x_t,x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0): precisions add, means are precision-weighted."""
    schedule, t = Schedule.named(), 400
    beta, before = schedule.betas[t], schedule.alphas_cumprod_prev[t]
    precision = (1 - beta) / beta + 1 / (1 - before)
    x0, x_t = 0.3, -0.8
    mean = (np.sqrt(1 - beta) / beta * x_t + np.sqrt(before) / (1 - before) * x0) / precision
    assert schedule.posterior_variance[t] == pytest.approx(1 / precision)
    found = schedule.posterior_mean(jnp.full((1, 1, 1, 1), x0), jnp.full((1, 1, 1, 1), x_t), jnp.array([t]))
    assert float(found.squeeze()) == pytest.approx(mean, rel=1e-5)
    assert np.isfinite(schedule.posterior_log_variance).all()


def test_bad_names_and_lengths_are_refused():
    with pytest.raises(ValueError, match="expected one of linear, cosine, found 'square'"):
        Schedule.named("square")
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        Schedule.named("linear", 0)
