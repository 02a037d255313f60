"""What the restorer is trained on: Eq. 9, L = ‖y_r − y‖₁, over the network alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from difflid_jax.data.pipeline import signed
from difflid_jax.training.step import Loss


def restoration_loss(network: nnx.GraphDef, features: Callable) -> Loss:
    """Eq. 9 for pairs of pictures.

    `network` is the graph of the restorer, whose parameters the loss is given; `features(frozen, x, key)`
    gives (h_content, h_haze) of hazy pictures x (B,H,W,3) float32 in [-1,1]. A batch has 'hazy' and 'clean',
    both uint8 (B,H,W,3); crops with the features of whole images also have 'view', these images, and 'window'
    (B,4), see `data.augment.Augment`.
    """

    def loss(params, frozen, batch, key):
        hazy, clean = signed(batch["hazy"]), signed(batch["clean"])
        whole = signed(batch["view"]) if "view" in batch else hazy
        h_content, h_haze = features(frozen, whole, key)
        window = {"window": batch["window"]} if "window" in batch else {}
        restored, _ = nnx.merge(network, params)(hazy, h_content, h_haze, **window)
        restored = restored.astype(jnp.float32)
        # Picture by picture first: the sum is the same however the batch is split over devices.
        errors = jnp.mean(jnp.abs(restored - clean), axis=(1, 2, 3))
        return jnp.mean(errors), {"psnr": _psnr(restored, clean)}

    return loss


def _psnr(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """Mean over the batch, in dB, of pictures in [-1,1] brought to [0,1] and clamped."""
    error = (jnp.clip(restored, -1, 1) - clean) / 2
    mse = jnp.mean(jnp.square(error), axis=(1, 2, 3))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
