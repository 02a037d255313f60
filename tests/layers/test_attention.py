"""Attention in bounded memory gives the same numbers as in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.layers.attention import attention


def whole(q, k, v, heads):
    q, k, v = (x.reshape(len(x), -1, heads, x.shape[-1] // heads) for x in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5, axis=-1)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


# Two images at a time; chunks that divide an image; chunks that do not.
@pytest.mark.parametrize(("batch", "queries"), [(3, 70), (3, 7), (1, 4)])
def test_values_and_gradients_are_the_same_in_chunks(batch, queries):
    heads, keys = 3, 2 * 3
    q = jax.random.normal(jax.random.key(0), (batch, 5, 7, 12))
    k, v = (jax.random.normal(jax.random.key(i), (batch, 2, 3, 12)) for i in (1, 2))

    def results(attend):
        def value_and_gradients(*qkv):
            value = attend(*qkv).reshape(q.shape)
            return value, jax.grad(lambda *qkv: (attend(*qkv) ** 2).sum(), (0, 1, 2))(*qkv)

        return jax.tree.leaves(jax.jit(value_and_gradients)(q, k, v))

    found = results(lambda *qkv: attention(*qkv, heads=heads, max_scores=queries * keys * heads))
    for ours, reference in zip(found, results(lambda *qkv: whole(*qkv, heads)), strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5 * float(jnp.abs(reference).max()))


@pytest.mark.parametrize(("side", "heads", "depth"), [(128, 4, 16), (173, 1, 64)])
def test_memory_does_not_grow_with_the_square_of_the_map(side, heads, depth):
    """The authors' release at a 128 px crop (4 GiB of scores), a U-Net's 1/8 of a photograph (3.3 GiB)."""
    shape = jax.ShapeDtypeStruct((1, side, side, heads * depth), jnp.float32)
    compiled = jax.jit(lambda *qkv: attention(*qkv, heads=heads)).lower(shape, shape, shape).compile()
    # Twice the 256 MiB of `MAX_SCORES`: scores and weights.
    assert compiled.memory_analysis().temp_size_in_bytes < 600e6
