"""The layers of the U-Net that are not Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from difflid_jax.diffusion.blocks import group_norm


def test_the_norm_of_bfloat16_maps_is_the_group_norm():
    scale, bias, x, pull = (
        jax.random.normal(jax.random.key(i), shape) + 1
        for i, shape in enumerate([(64,), (64,), (2, 3, 5, 64), (2, 3, 5, 64)])
    )
    x = x.astype(jnp.bfloat16).astype(jnp.float32)

    def value_and_gradient(dtype):
        norm = group_norm(64, of=dtype, rngs=nnx.Rngs(0))
        norm.scale.set_value(scale)
        norm.bias.set_value(bias)
        assert norm(x.astype(dtype)).dtype == jnp.float32
        return norm(x.astype(dtype)), jax.grad(lambda x: (norm(x) * pull).sum())(x)

    for found, plain in zip(value_and_gradient(jnp.bfloat16), value_and_gradient(jnp.float32), strict=True):
        np.testing.assert_allclose(found, plain, atol=2e-5)
