"""Bilinear resizing, of a whole feature map or of the part that a tile or a padded image covers."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The part (top, left, bottom, right) of an image, in fractions of its sides. Anything outside 0 to 1 is
# padding.
Window = Sequence[SupportsFloat | Array] | Float[Array, "4"]
DimSize = Any  # an integer, or symbolic in an exported program
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
_FEW = 8  # rows or columns up to which `enlarge` takes a sum

# Weights of pixels i − 1, i, i + 1 (last axis) in what tap 0, 1, 2 (middle axis) of a 3×3 convolution reads
# for pixels 2i, 2i + 1 (first axis) of a map enlarged twice.
DOUBLED = np.array(
    [
        [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0.75, 0.25]],
        [[0.25, 0.75, 0], [0, 0.75, 0.25], [0, 0.25, 0.75]],
    ],
    np.float32,
)


def resize(
    x: Float[Array, "b m n c"], size: Sequence[DimSize], window: Window = WHOLE
) -> Float[Array, "b h w c"]:
    """The part `window` of x, resized to `size` (h,w); beyond the image, its edge.

    Within it the same as `jax.image.resize` and `jax.image.scale_and_translate`.
    """
    rows, columns = (weights.astype(x.dtype) for weights, _ in bilinear_weights(size, x.shape[1:3], window))
    tall = jnp.einsum("hi,bijc->bhjc", rows, x, precision="highest")
    return jnp.einsum("wj,bhjc->bhwc", columns, tall, precision="highest")


def enlarge(
    x: Float[Array, "b m n c"], size: Sequence[DimSize], window: Window = WHOLE
) -> Float[Array, "b h w c"]:
    """As `resize`; for few rows and columns as a sum, which an accelerator computes where it is used.

    Matrix products would write the large map, and with its axes in another order.
    """
    few = all(isinstance(length, int) and length <= _FEW for length in x.shape[1:3])
    if not few:
        return resize(x, size, window)
    rows, columns = (weights.astype(x.dtype) for weights, _ in bilinear_weights(size, x.shape[1:3], window))
    tall = sum(rows[:, i, None, None] * x[:, i, None] for i in range(x.shape[1]))
    return sum(columns[:, j, None] * tall[:, :, j, None] for j in range(x.shape[2]))


def enlarge_twice(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """`resize(x, (2h, 2w))`, without matrix products: 3/4 of the nearest pixel, 1/4 of the next."""
    rows = jnp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    x = _interleave(rows[:, :-2], x, rows[:, 2:], axis=1)
    columns = jnp.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)
    return _interleave(columns[:, :, :-2], x, columns[:, :, 2:], axis=2)


def _interleave(before: jax.Array, x: jax.Array, after: jax.Array, axis: int) -> jax.Array:
    twice = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
    return twice.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def average(x: Float[Array, "b h w c"], window: Window = WHOLE) -> Float[Array, "b 1 1 c"]:
    """The float32 average of x, which covers `window`, over the part of it that is inside the image."""
    (_, rows), (_, columns) = bilinear_weights(x.shape[1:3], (1, 1), window)
    inside = (rows[:, None] * columns)[:, :, None]
    return (x * inside).sum((1, 2), keepdims=True) / inside.sum()


def bilinear_weights(
    size: Sequence[DimSize], maps: Sequence[DimSize], window: Window = WHOLE
) -> tuple[tuple[Float[Array, "h m"], Float[Array, " h"]], tuple[Float[Array, "w n"], Float[Array, " w"]]]:
    """(weights, share inside the image) for rows, then columns, of m×n maps resized in `window` to `size`.

    As `jax.image.scale_and_translate(method="linear")`: pixel centres at half integers, antialiased when
    shrinking. But pixels beyond the image take the values of its edge.
    """
    top, left, bottom, right = window
    return _weights(size[0], maps[0], top, bottom), _weights(size[1], maps[1], left, right)


def _weights(
    many: DimSize, few: DimSize, start: SupportsFloat, stop: SupportsFloat
) -> tuple[jax.Array, jax.Array]:
    index = jnp.arange(many, dtype=jnp.float32)
    step = 1 / jnp.asarray(many / ((stop - start) * few), jnp.float32)
    # How much of each pixel is inside: at a deep level one may be half image, half padding.
    inside = jnp.clip((1 - start) * many / (stop - start) - index, 0, 1)
    position = jnp.clip((index + 0.5) * step + start * few - 0.5, -0.5, few - 0.5)
    distance = jnp.abs(position[:, None] - jnp.arange(few, dtype=jnp.float32)) / jnp.maximum(step, 1)
    weights = jnp.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True), inside
