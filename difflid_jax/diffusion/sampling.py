"""Sampling images from a diffusion model: ancestral sampling (Ho et al. 2020) and DDIM (Song et al. 2021).

    ancestral:  x_{t−1} = μ̃_t(x_t, x̂_0) + σ_t z,  σ_t learned (Nichol & Dhariwal 2021) or √β_t
    DDIM:       x_{t−1} = √ᾱ_{t−1} x̂_0 + √(1 − ᾱ_{t−1} − σ_t²) ε̂ + σ_t z,
                σ_t = η √((1 − ᾱ_{t−1}) / (1 − ᾱ_t)) √(1 − ᾱ_t / ᾱ_{t−1})

x̂_0 is clipped to [−1, 1]. With fewer steps than the model was trained with, a shorter schedule has the same
ᾱ at the timesteps kept. Reference: guided_diffusion/gaussian_diffusion.py (p_sample, ddim_sample) and
respace.py.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from difflid_jax.diffusion.objective import learned_log_variance, split_output
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet
from difflid_jax.weights import schema

SAMPLERS = ("ddim", "ddpm")


def kept_timesteps(total: int, steps: int, sampler: str) -> Int[np.ndarray, " n"]:
    """The `steps` timesteps of `total` that are kept, ascending.

    DDIM strides by an integer from 0 if one fits (the reference's "ddimN"); otherwise they are spread evenly
    from the first to the last. Raises ValueError for an unknown sampler or an impossible number.
    """
    schema.check_choice("sampler", sampler, SAMPLERS)
    if not 1 <= steps <= total:
        raise ValueError(f"sampling steps: expected 1 to {total}, found {steps}")
    if sampler == "ddim":
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == steps:
                return np.arange(0, total, stride)
    stride = (total - 1) / (steps - 1) if steps > 1 else 1.0
    return np.array([round(i * stride) for i in range(steps)])


def shortened(schedule: Schedule, timesteps: Int[np.ndarray, " n"]) -> Schedule:
    """The schedule whose step i has the ᾱ of `timesteps[i]`."""
    alphas = schedule.alphas_cumprod[timesteps]
    return Schedule(1 - alphas / np.append(1.0, alphas[:-1]))


def step_back(
    schedule: Schedule,
    sampler: str,
    output: Float[Array, "b h w d"],
    x: Float[Array, "b h w 3"],
    i: Int[Array, ""] | int,
    noise: Float[Array, "b h w 3"],
    eta: float = 0.0,
) -> Float[Array, "b h w 3"]:
    """x at step i−1, from x at step i of `schedule` and the model's output for it (3 or 6 channels).

    `noise` is standard normal. At i = 0 no noise is added.
    """
    predicted, variance = split_output(output.astype(jnp.float32))
    t = jnp.full(len(x), i)
    x0 = jnp.clip(schedule.x0_from_noise(x, t, predicted), -1, 1)
    noise = jnp.where(i > 0, noise, 0)
    if sampler == "ddpm":
        if variance is not None:
            log_variance = learned_log_variance(schedule, variance, t)
        else:
            first = np.exp(schedule.posterior_log_variance[:1])
            log_variance = schedule.at(np.log(np.append(first, schedule.betas[1:])), t)
        return schedule.posterior_mean(x0, x, t) + jnp.exp(0.5 * log_variance) * noise
    now, then = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    sigma = eta * np.sqrt((1 - then) / (1 - now)) * np.sqrt(1 - now / then)
    # The noise consistent with the clipped x̂_0.
    predicted = (schedule.at(1 / np.sqrt(now), t) * x - x0) / schedule.at(np.sqrt(1 / now - 1), t)
    return (
        schedule.at(np.sqrt(then), t) * x0
        + schedule.at(np.sqrt(np.maximum(1 - then - sigma**2, 0)), t) * predicted
        + schedule.at(sigma, t) * noise
    )


class Sampler:
    """Draws images from `unet`, compiled once for all batches of one size.

    Raises ValueError for an unknown `sampler` or more `steps` than the schedule has.
    """

    def __init__(
        self, unet: UNet, schedule: Schedule, *, steps: int = 50, sampler: str = "ddim", eta: float = 0.0
    ):
        self._channels = unet.spec.in_channels
        self._timesteps = kept_timesteps(schedule.steps, steps, sampler)
        short = shortened(schedule, self._timesteps)
        timesteps = jnp.asarray(self._timesteps)
        graph, self._parameters = nnx.split(unet)

        def draw(keys: jax.Array, number: jax.Array, sides: tuple[int, ...]) -> jax.Array:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            return jax.vmap(lambda key: jax.random.normal(key, sides, jnp.float32))(keys)

        # The parameters are an argument: closed over, they would become constants of the compiled program.
        @partial(jax.jit, donate_argnums=1)
        def step(parameters, x: jax.Array, i: jax.Array, keys: jax.Array, labels: jax.Array | None):
            output = nnx.merge(graph, parameters)(x, jnp.full(len(x), timesteps[i]), labels)
            return step_back(short, sampler, output, x, i, draw(keys, i, x.shape[1:]), eta)

        self._draw = draw
        self._step = step

    def __call__(
        self,
        keys: Key[Array, " b"],
        size: tuple[int, int],
        labels: Int[Array, " b"] | None = None,
        watch: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Float[Array, "b h w c"]:
        """Images, float32, close to [−1,1], of `size` (h,w), multiples of the U-Net's stride.

        Image i depends only on `keys[i]`, not on the rest of the batch. `labels` are for class-conditional
        models. `watch` wraps the sequence of steps, as `tqdm` does.
        """
        x = self._draw(keys, jnp.asarray(len(self._timesteps)), (*size, self._channels))
        for i in watch(range(len(self._timesteps) - 1, -1, -1)):
            x = self._step(self._parameters, x, jnp.asarray(i), keys, labels)
        return x
