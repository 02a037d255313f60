"""Convolutions of the baselines, padded as in their authors' frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    rngs: nnx.Rngs,
    stride: int = 1,
    padding: str | int | None = None,
    groups: int = 1,
) -> nnx.Conv:
    """A convolution with zero padding of size // 2 on each side, or as given."""
    # Full float32 on every device: these networks are compared by their scores.
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        feature_group_count=groups,
        precision=jax.lax.Precision.HIGHEST,
        rngs=rngs,
    )


def pad(x: Float[Array, "b h w c"], before: int, after: int, mode: str) -> Float[Array, "b h2 w2 c"]:
    """Pad rows and columns; `mode` is one of `jnp.pad`."""
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), mode=mode)


def nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Nearest-neighbour resize as PyTorch's `interpolate`: output i reads input ⌊i · in / out⌋."""
    for axis, length in ((1, size[0]), (2, size[1])):
        scale = np.float32(x.shape[axis] / length)
        positions = np.floor(np.arange(length, dtype=np.float32) * scale).astype(np.int32)
        x = jnp.take(x, np.minimum(positions, x.shape[axis] - 1), axis=axis)
    return x
