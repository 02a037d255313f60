"""Self-attention over large maps: the same numbers in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.diffusion import blocks


@pytest.mark.parametrize(("positions", "most"), [(7, 1), (65, 1000)])
def test_queries_in_turns_give_the_same_attention(monkeypatch, positions, most):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, positions, 3, 8)) for key in keys)
    whole = jax.nn.dot_product_attention(q, k, v)
    monkeypatch.setattr(blocks, "MAX_SCORES", most)
    np.testing.assert_allclose(blocks.attend(q, k, v), whole, atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_the_map():
    """A 1600×1200 photograph at 1/8, as Dense-Haze has them: 30,000 positions, 3.6 GB of scores a head."""
    shape = jax.ShapeDtypeStruct((1, 30_000, 1, 64), jnp.float32)
    compiled = jax.jit(blocks.attend).lower(shape, shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1 << 30
