"""Convolutions with zero padding, as `lax.conv_general_dilated` computes them."""

from collections.abc import Sequence
from typing import Any

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


@cpu.on_cpu(convolution.convolve_joined)
def convolve_joined(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "1 1 c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h w d"]:
    """`convolve` by 1×1 of two maps of the same width that were concatenated."""
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


class UpConv(nnx.Conv):
    """Bilinear ×2, then the 3×3 convolution: (B,H,W,C) → (B,2H,2W,C')."""

    @cpu.on_cpu(convolution.convolve_doubled)
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return super().__call__(enlarge_twice(x))
