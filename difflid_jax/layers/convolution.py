"""Convolutions with zero padding, as `lax.conv_general_dilated` computes them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from difflid_jax.layers import cpu
from difflid_jax.layers.cpu import convolution
from difflid_jax.layers.resize import enlarge_twice


@cpu.on_cpu(convolution.convolve)
def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "m n c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    """The default convolution of `nnx.Conv`: its argument `conv_general_dilated`."""
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def convolve_joined(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "1 1 c d"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h w d"]:
    """1×1 convolution of two concatenated maps, as a sum of two, so that the maps are never joined."""
    halves = zip(jnp.split(x, 2, axis=-1), jnp.split(kernel, 2, axis=2), strict=True)
    return sum(lax.conv_general_dilated(x, half, strides, padding, **options) for x, half in halves)


class UpConv(nnx.Conv):
    """Bilinear ×2, then the 3×3 convolution: (B,H,W,C) → (B,2H,2W,C')."""

    @cpu.on_cpu(convolution.convolve_doubled)
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        # Gradients recompute the enlarged map, which takes four times the memory of x.
        return jax.checkpoint(lambda x: super(UpConv, self).__call__(enlarge_twice(x)))(x)
