"""Haze-aware enhancement (paper Sec. 4.2, Eqs. 7–8): the h-space at t₂ modulates pixels, then channels.

F'_m = (W_γ h) ⊙ F' + W_β h                      Eq. 7
F_o  = σ(W_L · AvgPool(F'_m)) ⊙ F'_m + F'        Eq. 8
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

WHOLE = (0.0, 0.0, 1.0, 1.0)
# Maps of up to so many columns are enlarged by a sum of their columns, wider ones by a matrix product.
_FEW_COLUMNS = 8


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
        """(F_o, the gate g = σ(W_L · AvgPool(F'_m)) of shape (B,1,1,C)).

        `window` = (top, left, bottom, right) is the part of h's image that f covers; WHOLE is all of it.
        Pixels beyond the image (padding) are modulated as its edge and are not pooled. `gate` replaces the
        one pooled from this input. Both serve padded images and tiles of a larger image.
        """
        scale, shift = self.scale(h), self.shift(h)
        rows, columns = _bilinear(f.shape[1:3], h.shape[1:3], window)
        if gate is None:
            pooled = _mean_modulated(f, scale, shift, rows, columns)
            gate = nnx.sigmoid(self.gate(pooled.astype(f.dtype)))
        # g ⊙ F'_m + F' = (1 + g ⊙ W_γ h) ⊙ F' + g ⊙ W_β h, and the gate goes into the small maps.
        scale, shift = (_enlarge(x, rows[0], columns[0], f.dtype) for x in (1 + gate * scale, gate * shift))
        return scale * f + shift, gate


def _bilinear(size: Sequence[int], maps: Sequence[int], window) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Of rows and of columns: weights (H,H') that bring `window` of the maps to `size`; share inside (H,).

    As `jax.image.scale_and_translate(method="linear")`, pixel centres at half integers; but pixels beyond the
    maps take the values of their edge.
    """
    top, left, bottom, right = window
    return tuple(
        _bilinear_weights(many, few, start, stop)
        for many, few, start, stop in ((size[0], maps[0], top, bottom), (size[1], maps[1], left, right))
    )


def _bilinear_weights(many, few, start, stop) -> tuple[jax.Array, jax.Array]:
    step = 1 / jnp.asarray(many / ((stop - start) * few), jnp.float32)
    position = (jnp.arange(many, dtype=jnp.float32) + 0.5) * step + start * few - 0.5
    # How much of each pixel is inside: at a deep level one may be half of image, half of padding.
    inside = jnp.clip((1 - start) * many / (stop - start) - jnp.arange(many, dtype=jnp.float32), 0, 1)
    position = jnp.clip(position, -0.5, few - 0.5)
    distance = jnp.abs(position[:, None] - jnp.arange(few, dtype=jnp.float32)) / jnp.maximum(step, 1)
    weights = jnp.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True), inside


def _mean_modulated(f: jax.Array, scale, shift, rows, columns) -> jax.Array:
    """AvgPool(F'_m) over the pixels inside, as float32 (B,1,1,C), with F read once.

    The mean of (R γ Cᵀ) ⊙ F over the pixels is that of γ ⊙ (Rᵀ F C): matrix products, on small maps.
    """
    (rows, row_inside), (columns, column_inside) = rows, columns
    rows, columns = rows * row_inside[:, None], columns * column_inside[:, None]
    below = jnp.einsum("bhwc,hi->biwc", f, rows.astype(f.dtype))
    below = jnp.einsum("biwc,wj->bijc", below, columns)
    area = jnp.einsum("hi,wj->ij", rows, columns)[None, :, :, None]
    total = (scale * below + shift * area).sum((1, 2), keepdims=True, dtype=jnp.float32)
    return total / (row_inside.sum() * column_inside.sum())


def _enlarge(maps: jax.Array, rows: jax.Array, columns: jax.Array, dtype) -> jax.Array:
    """maps (B,H',W',C) at (B,H,W,C), of `dtype`."""
    tall = jnp.einsum("hi,bijc->bhjc", rows, maps).astype(dtype)
    return _widen(tall, columns.astype(dtype))


@jax.custom_vjp
def _widen(tall: jax.Array, columns: jax.Array) -> jax.Array:
    """(B,H,W',C) and constant weights (W,W') → (B,H,W,C)."""
    # Sizes may be open, in an exported program.
    if isinstance(tall.shape[2], int) and tall.shape[2] <= _FEW_COLUMNS:
        # As a sum, the compiler works it out where it is used, and never writes it to memory.
        return sum(columns[:, j, None] * tall[:, :, None, j] for j in range(tall.shape[2]))
    return jnp.einsum("wj,bhjc->bhwc", columns, tall)


_widen.defvjp(
    lambda tall, columns: (_widen(tall, columns), columns),
    lambda columns, g: (jnp.einsum("wj,bhwc->bhjc", columns, g), jnp.zeros_like(columns)),
)
