"""The losses: Eq. 9 of the restorer, L = ‖y_r − y‖₁, Eq. 4 of a prior, Eq. 5 of a decoder of h-space."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from difflid_jax.data.pipeline import signed
from difflid_jax.diffusion.objective import hybrid_loss
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.training.step import Loss


def restoration_loss(
    network: nnx.GraphDef, features: Callable, frequency_weight: optax.Schedule | None = None
) -> Loss:
    """Eq. 9 for a batch {'hazy', 'clean'}, both uint8 (B,H,W,3).

    `network` is the graph of the restorer, whose parameters the loss receives; `features(frozen, x, key)`
    gives (h_content, h_haze) of hazy images x (B,H,W,3), float32 in [-1,1]. Crops with the features of whole
    images also have 'view', these images, or 'h_content' and 'h_haze', their features, and 'window' (B,4);
    see `data.augment.Augment`.

    frequency_weight: of the L1 distance of the two images' Fourier transforms, not normalized, which is added
    to Eq. 9, as a function of the step; Cho et al. (Rethinking Coarse-to-Fine Approach in Single Image
    Deblurring, ICCV 2021) take 0.1.
    """

    def loss(params, frozen, batch, key, step):
        hazy, clean = signed(batch["hazy"]), signed(batch["clean"])
        if "h_haze" in batch:
            maps = batch["h_content"], batch["h_haze"]
        else:
            maps = features(frozen, signed(batch["view"]) if "view" in batch else hazy, key)
            # The network waits for the features, so that its maps and the U-Net's are not in memory together.
            hazy, *maps = jax.lax.optimization_barrier((hazy, *maps))
        window = {"window": batch["window"]} if "window" in batch else {}
        restored, _ = nnx.merge(network, params)(hazy, *maps, **window)
        restored = restored.astype(jnp.float32)
        # Image by image first: the sum is the same however the batch is split over devices.
        errors = jnp.mean(jnp.abs(restored - clean), axis=(1, 2, 3))
        if frequency_weight is not None:
            spectrum = jnp.fft.rfft2(restored - clean, axes=(1, 2))
            parts = jnp.stack([spectrum.real, spectrum.imag])
            errors += frequency_weight(step) * jnp.mean(jnp.abs(parts), axis=(0, 2, 3, 4))
        return jnp.mean(errors), {"psnr": _psnr(restored, clean)}

    return loss


def diffusion_loss(unet: nnx.GraphDef, schedule: Schedule, variance_weight: float, drops: bool) -> Loss:
    """Eq. 4 and the learned-variance bound for a batch {'image': uint8 (B,H,W,3)}; timesteps are uniform.

    `unet` is the graph of the U-Net, whose parameters the loss receives. drops: apply its dropout.
    """

    def loss(params, frozen, batch, key, step):
        x0 = signed(batch["image"])
        for_t, for_noise, for_dropout = jax.random.split(key, 3)
        t = jax.random.randint(for_t, (len(x0),), 0, schedule.steps, jnp.int32)
        noise = jax.random.normal(for_noise, x0.shape, jnp.float32)
        x_t = schedule.sample_noisy(x0, t, noise)
        output = nnx.merge(unet, params)(x_t, t, key=for_dropout if drops else None)
        simple, bound = hybrid_loss(schedule, x0, x_t, t, noise, output)
        total = jnp.mean(simple + variance_weight * bound)
        return total, {"noise_loss": jnp.mean(simple), "bound": jnp.mean(bound)}

    return loss


def decoder_loss(decoder: nnx.GraphDef, features: Callable) -> Loss:
    """Eq. 5, L_t = ‖D_t(h_t) − y‖₁, for a batch {'image': uint8 (B,H,W,3)} of clean images y.

    `decoder` is the graph of D_t, whose parameters the loss receives; `features(frozen, y, key)` gives h_t of
    images y (B,H,W,3), float32 in [-1,1].
    """

    def loss(params, frozen, batch, key, step):
        y = signed(batch["image"])
        decoded = nnx.merge(decoder, params)(features(frozen, y, key))
        errors = jnp.mean(jnp.abs(decoded - y), axis=(1, 2, 3))
        return jnp.mean(errors), {"psnr": _psnr(decoded, y)}

    return loss


def _psnr(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Mean over the batch, in dB, of images in [-1,1], mapped to [0,1] and clamped."""
    error = (jnp.clip(restored, -1, 1) - clean) / 2
    mse = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
