"""Convolutions on maps smaller than their kernel, at which XLA's own are slow on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax

from difflid_jax.diffusion.blocks import conv, convolve

NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
PADDING = ((1, 1), (1, 1))


def test_small_maps_are_convolved_as_large_ones_are():
    """Float32 sums of 45 products in another order."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 5, 7))
    maps = [jax.random.normal(jax.random.key(1), (2, *side, 5)) for side in [(1, 8), (2, 2), (3, 2)]]

    def results(convolution):
        return [convolution(x, kernel, (stride,) * 2, PADDING, **NUMBERS) for x in maps for stride in (1, 2)]

    found, expected = jax.jit(lambda: (results(convolve), results(lax.conv_general_dilated)))()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA's convolution always runs")
def test_only_maps_with_fewer_positions_than_the_kernel_become_a_product():
    graph, parameters = nnx.split(conv(5, 7, 3, dtype=jnp.float32, rngs=nnx.Rngs(0)))

    def is_convolution(*sides):
        program = jax.make_jaxpr(lambda x: nnx.merge(graph, parameters)(x))(jnp.zeros((1, *sides, 5)))
        return "conv_general_dilated" in str(program)

    assert not is_convolution(2, 2) and not is_convolution(1, 8)
    assert is_convolution(3, 3) and is_convolution(2, 5)


def test_sizes_may_stay_open():
    kernel, shape = jnp.ones((3, 3, 5, 7)), export.symbolic_shape("b, h, w, 5")
    run = jax.jit(lambda x: convolve(x, kernel, (1, 1), PADDING, **NUMBERS))
    assert export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32)).out_avals[0].shape[3] == 7
