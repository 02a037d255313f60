"""Convolutions in forms that take fewer or larger matrix products."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from difflid_jax.layers.resize import DOUBLED

# Convolutions from or to at most this many channels are rewritten.
_FEW_CHANNELS = 3


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "m n c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    """`lax.conv_general_dilated`, undilated, with a kernel of odd sides and padding of half of them."""
    sides, taps = x.shape[1:3], kernel.shape[:2]
    # Sizes are symbolic in an exported program.
    if all(isinstance(side, int) for side in sides) and math.prod(sides) < math.prod(taps):
        return _convolve_small(x, kernel, strides, padding)
    if taps == (3, 3) and tuple(strides) == (1, 1):
        if x.shape[3] <= _FEW_CHANNELS:
            return _convolve_from_few(x, kernel)
        if kernel.shape[3] <= _FEW_CHANNELS:
            return _convolve_to_few(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _convolve_small(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """One matrix product, for a map with fewer positions than the kernel.

    For these, XLA replaces its fast path by loops that take 30 times as long or more (3×3 on 2×2).
    """
    sides, taps = x.shape[1:3], kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        [slice(i, i + side, stride) for i in range(n)]
        for side, stride, n in zip(sides, strides, taps, strict=True)
    )
    views = jnp.concatenate([x[:, row, column] for row in rows for column in columns], axis=-1)
    return views @ kernel.reshape(-1, kernel.shape[-1])


def _convolve_from_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 from few channels, in half the time.

    Four columns are computed at once from the six that they see: a wider matrix product.
    """
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    # Which of the six columns tap j of column p sees.
    sees = np.stack([np.eye(3, 6, p, dtype=np.float32) for p in range(4)])
    wide = jnp.einsum("pjq,rjco->rqcpo", sees.astype(x.dtype), kernel).reshape(3, 1, 6 * inputs, -1)
    fours = -(-width // 4)
    x = jnp.pad(x, [(0, 0), (1, 1), (1, 4 * fours + 3 - width), (0, 0)])
    x = x.reshape(batch, height + 2, fours + 1, 4 * inputs)
    x = jnp.concatenate([x[:, :, :-1], x[:, :, 1:, : 2 * inputs]], axis=-1)
    return _convolve(x, wide).reshape(batch, height, 4 * fours, outputs)[:, :, :width]


def _convolve_to_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3×3 to few channels, in half the time.

    It convolves across columns only, with the three rows of taps as channels, then adds up rows in float32.
    """
    batch, height, width, inputs = x.shape
    across = kernel.transpose(1, 2, 0, 3).reshape(1, 3, inputs, -1)
    y = _convolve(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), across)
    y = y.reshape(batch, height + 2, width, 3, -1).astype(jnp.float32)
    return sum(y[:, tap : tap + height, :, tap] for tap in range(3)).astype(x.dtype)


def convolve_doubled(conv: nnx.Conv, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """`UpConv.__call__` of `conv`, 3×3: bilinear ×2, then the convolution, in 0.3 to 0.5 of the time.

    Enlarging is linear, and so are the three taps that follow: each of the two rows that a row becomes is a
    sum of three rows of x, weighted by `DOUBLED`. Across columns the weights are folded into the kernel.
    This takes half of the multiplications, and the enlarged map is never stored.
    """
    kernel, bias = (value[...].astype(x.dtype) for value in (conv.kernel, conv.bias))
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[-1]
    x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    # Channels of y: column 2j or 2j + 1, tap of the row, output.
    across = jnp.einsum("pji,rjco->icpro", DOUBLED.astype(x.dtype), kernel).reshape(1, 3, inputs, -1)
    y = _convolve(x, across).reshape(batch, height + 2, width, 2, 3, outputs)
    # Beyond its edge the enlarged map is zero, not repeated.
    y = y.at[:, :, 0, 0].add(-jnp.einsum("bhc,rco->bhro", x[:, :, 0], kernel[:, 0]))
    y = y.at[:, :, -1, 1].add(-jnp.einsum("bhc,rco->bhro", x[:, :, -1], kernel[:, 2]))
    y = y.reshape(batch, height + 2, 2 * width, 3, outputs)
    # Row 2i + p, of which tap t sees row 2i + p + t - 1, if there is one.
    row = jnp.arange(2 * height).reshape(height, 2)
    rows = bias.astype(jnp.float32)
    for tap in range(3):
        inside = (row + tap >= 1) & (row + tap <= 2 * height)
        for first in range(3):
            if DOUBLED[:, tap, first].any():
                share = (DOUBLED[:, tap, first] * inside)[:, :, None, None]
                rows += share * y[:, first : first + height, None, :, tap]
    return rows.reshape(batch, 2 * height, 2 * width, outputs).astype(x.dtype)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
