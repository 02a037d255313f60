"""Haze-aware enhancement (Eqs. 7–8) that reads F twice and writes nothing of F's size but the result."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.layers.resize import WHOLE, Window, bilinear_weights

# Maps of at most this many columns are enlarged by a sum over their columns, wider ones by a matrix product.
_FEW_COLUMNS = 8


def haze_aware_enhancement(
    hae: nnx.Module,
    f: Float[Array, "b h w c"],
    h: Float[Array, "b m n d"],
    *,
    gate: Float[Array, "b 1 1 c"] | None = None,
    window: Window = WHOLE,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 c"]]:
    """`HazeAwareEnhancement.__call__` of `hae`."""
    gamma, beta = hae.scale(h), hae.shift(h)
    rows, columns = bilinear_weights(f.shape[1:3], h.shape[1:3], window)
    if gate is None:
        gate = nnx.sigmoid(hae.gate(_average_modulated(f, gamma, beta, rows, columns).astype(f.dtype)))
    # g ⊙ (γ ⊙ F + β) + F = (1 + g ⊙ γ) ⊙ F + g ⊙ β, and the gate goes into the small maps.
    gamma, beta = (_enlarge(x, rows[0], columns[0], f.dtype) for x in (1 + gate * gamma, gate * beta))
    return gamma * f + beta, gate


def _average_modulated(
    f: jax.Array,
    gamma: jax.Array,
    beta: jax.Array,
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """AvgPool(γ ⊙ F + β) over the part inside the image, float32 (B,1,1,C).

    The average of (R γ Cᵀ) ⊙ F over the pixels is that of γ ⊙ (Rᵀ F C): matrix products, on small maps.
    """
    (rows, row_inside), (columns, column_inside) = rows, columns
    rows, columns = rows * row_inside[:, None], columns * column_inside[:, None]
    below = jnp.einsum("bhwc,hi->biwc", f, rows.astype(f.dtype))
    below = jnp.einsum("biwc,wj->bijc", below, columns)
    area = jnp.einsum("hi,wj->ij", rows, columns)[None, :, :, None]
    total = (gamma * below + beta * area).sum((1, 2), keepdims=True, dtype=jnp.float32)
    return total / (row_inside.sum() * column_inside.sum())


def _enlarge(maps: jax.Array, rows: jax.Array, columns: jax.Array, dtype: Any) -> jax.Array:
    """Maps (B,M,N,C) resized to (B,H,W,C) of `dtype` by weights (H,M) and (W,N)."""
    tall = jnp.einsum("hi,bijc->bhjc", rows, maps).astype(dtype)
    return _widen(tall, columns.astype(dtype))


@jax.custom_vjp
def _widen(tall: jax.Array, columns: jax.Array) -> jax.Array:
    """(B,H,N,C) and constant weights (W,N) → (B,H,W,C)."""
    # Sizes are symbolic in an exported program.
    if isinstance(tall.shape[2], int) and tall.shape[2] <= _FEW_COLUMNS:
        # The compiler computes a sum where it is used, and never writes it to memory.
        return sum(columns[:, j, None] * tall[:, :, None, j] for j in range(tall.shape[2]))
    return jnp.einsum("wj,bhjc->bhwc", columns, tall)


_widen.defvjp(
    lambda tall, columns: (_widen(tall, columns), columns),
    lambda columns, g: (jnp.einsum("wj,bhwc->bhjc", columns, g), jnp.zeros_like(columns)),
)
