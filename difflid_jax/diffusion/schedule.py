"""The Gaussian diffusion q and its posterior (paper Eqs. 1–3; Ho et al. 2020, Sec. 2–3).

    q(x_t | x_{t-1}) = N(√(1−β_t) x_{t−1}, β_t I)                                   Eq. 1
    q(x_t | x_0)     = N(√ᾱ_t x_0, (1−ᾱ_t) I),  ᾱ_t = ∏_{s≤t} (1−β_s)                Eq. 2
    q(x_{t−1} | x_t, x_0) = N(μ̃_t, β̃_t I)                                           Eq. 3

Timesteps count from 0, as in OpenAI's code: t = 0 is the first noising step, t = 999 the last. The
paper's T = 1000 therefore runs as t = 999.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from difflid_jax.diffusion.spec import NOISE_SCHEDULES
from difflid_jax.weights import schema


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Tables of a diffusion process, float64 arrays of length `steps`, indexed by timestep."""

    betas: np.ndarray

    @classmethod
    @functools.cache
    def named(cls, name: str = "linear", steps: int = 1000) -> "Schedule":
        """OpenAI's schedule `name` ("linear" or "cosine") with `steps` steps.

        Reference: guided_diffusion/gaussian_diffusion.py, get_named_beta_schedule.
        Raises ValueError for an unknown name or fewer than 1 step.
        """
        schema.check_choice("noise schedule", name, NOISE_SCHEDULES)
        schema.check_least("noise schedule steps", steps, 1)
        if name == "linear":
            scale = 1000 / steps
            return cls(np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64))
        edges = np.cos((np.arange(steps + 1, dtype=np.float64) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls(np.minimum(1 - edges[1:] / edges[:-1], 0.999))

    @property
    def steps(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t of Eq. 2."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self) -> np.ndarray:
        """ᾱ_{t−1}, with 1 before the first step."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """β̃_t of Eq. 3; zero at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """log β̃_t, with the value of t = 1 in place of the −∞ at t = 0 (as OpenAI's code clips it)."""
        clipped = self.posterior_variance.copy()
        clipped[0] = clipped[1] if self.steps > 1 else self.betas[0]
        return np.log(clipped)

    def at(self, table: Float[np.ndarray, " steps"], t: Int[Array, " b"]) -> Float[Array, "b 1 1 1"]:
        """`table[t]`, float32, for a batch of timesteps t."""
        return jnp.asarray(table, jnp.float32)[t][:, None, None, None]

    def sample_noisy(
        self, x0: Float[Array | np.ndarray, "b h w c"], t: Int[Array, " b"], noise: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """x_t ~ q(x_t | x_0) (Eq. 2); the noise is standard normal."""
        return (
            self.at(np.sqrt(self.alphas_cumprod), t) * x0
            + self.at(np.sqrt(1 - self.alphas_cumprod), t) * noise
        )

    def x0_from_noise(
        self, x_t: Float[Array, "b h w c"], t: Int[Array, " b"], noise: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """The x_0 for which `sample_noisy(x_0, t, noise)` is x_t."""
        return (
            self.at(1 / np.sqrt(self.alphas_cumprod), t) * x_t
            - self.at(np.sqrt(1 / self.alphas_cumprod - 1), t) * noise
        )

    def posterior_mean(
        self, x0: Float[Array, "b h w c"], x_t: Float[Array, "b h w c"], t: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """μ̃_t(x_t, x_0) of Eq. 3."""
        one_minus = 1 - self.alphas_cumprod
        on_x0 = self.betas * np.sqrt(self.alphas_cumprod_prev) / one_minus
        on_xt = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / one_minus
        return self.at(on_x0, t) * x0 + self.at(on_xt, t) * x_t
