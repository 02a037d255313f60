"""Haze-aware enhancement (paper Sec. 4.2, Eqs. 7–8): the h-space at t₂ modulates pixels, then channels.

F'_m = (W_γ h) ⊙ F' + W_β h                      Eq. 7
F_o  = σ(W_L · AvgPool(F'_m)) ⊙ F'_m + F'        Eq. 8
"""

import jax
import jax.numpy as jnp
from flax import nnx

WHOLE = (0.0, 0.0, 1.0, 1.0)


class HazeAwareEnhancement(nnx.Module):
    """F' (B,H,W,C), h (B,H',W',C') → F_o (B,H,W,C). W_γ and W_β are 1×1 convolutions, W_L a linear layer.

    The maps W_γ h and W_β h are brought to F's size bilinearly.
    """

    def __init__(self, channels: int, feature_channels: int, *, dtype, rngs: nnx.Rngs):
        # Zero at the start: the block then hands F' through. Seven products in a row would else explode.
        zero = nnx.initializers.zeros
        self.scale = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.shift = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, f: jax.Array, h: jax.Array, *, gate: jax.Array | None = None, window=WHOLE
    ) -> tuple[jax.Array, jax.Array]:
        """(F_o, the gate σ(W_L · AvgPool(F'_m)) of shape (B,1,1,C)).

        `gate` replaces the one pooled from this input; `window` is the part (top, left, bottom, right), in
        [0,1], of the picture under h that f covers. Both serve tiles of a larger picture.
        """
        modulated = _resample(self.scale(h), f.shape[1:3], window) * f + _resample(
            self.shift(h), f.shape[1:3], window
        )
        if gate is None:
            pooled = modulated.mean((1, 2), keepdims=True, dtype=jnp.float32)
            gate = nnx.sigmoid(self.gate(pooled.astype(f.dtype)))
        return gate * modulated + f, gate


def _resample(maps: jax.Array, size: tuple[int, int], window) -> jax.Array:
    """The `window` of maps (B,H',W',C), bilinearly at `size`, pixel centres at half integers."""
    top, left, bottom, right = window
    rows, columns = maps.shape[1:3]
    scale = jnp.stack([size[0] / ((bottom - top) * rows), size[1] / ((right - left) * columns)])
    offset = jnp.stack([top * rows, left * columns]) * scale
    return jax.image.scale_and_translate(
        maps, (maps.shape[0], *size, maps.shape[3]), (1, 2), scale, -offset, method="linear"
    ).astype(maps.dtype)
