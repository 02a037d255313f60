"""The features of the authors' PyTorch release, which are not the h-space of the paper.

Reference: HSpaceExtractor in models/net.py of aaaasan111/difflid. It takes the *output* of the diffusion
U-Net (6 channels at the image's own size), passes it ᾱ_t in place of the timestep t, adds noise at t₁ = 0
too (ᾱ_0 = 0.9999) and draws new noise for each map and each call; here `key` determines the noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet


def release_features(
    unet: UNet,
    schedule: Schedule,
    x: Float[Array | np.ndarray, "b h w 3"],
    key: Array,
    times: tuple[int, int] = (0, 500),
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """(h_content, h_haze), each (B,H,W,out_channels), of images x (B,H,W,3) in [-1,1]; pure, to be jitted.

    H and W are multiples of the U-Net's stride; `unet` holds its decoder (part="all"). Image i of the batch
    gets its own noise, which does not depend on the rest of the batch. Gradients do not flow back.
    """
    batch = x.shape[0]

    def noise(t):
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, t), i))(jnp.arange(batch))
        return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], jnp.float32))(keys)

    x = x.astype(jnp.float32)
    noisy = [schedule.sample_noisy(x, jnp.full(batch, t), noise(t)) for t in times]
    alpha_bars = jnp.repeat(jnp.asarray(schedule.alphas_cumprod[list(times)], jnp.float32), batch)
    maps = jax.lax.stop_gradient(unet(jnp.concatenate(noisy), alpha_bars))
    return maps[:batch], maps[batch:]
