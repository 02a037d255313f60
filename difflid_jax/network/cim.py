"""Content integration module (paper Sec. 4.2, Eq. 6): every pixel asks the h-space at t₁ for content.

h' = W_c h,  Q = W_Q F,  K = W_K h',  V = W_V h'
F' = W_O · Softmax(QKᵀ/√d) V + F
"""

import jax
from flax import nnx

from difflid_jax.layers.attention import attend


class ContentIntegration(nnx.Module):
    """F (B,H,W,C), h (B,H',W',C') → F' (B,H,W,C). Multi-head, with d = C / heads; all 1×1 convolutions."""

    def __init__(self, channels: int, feature_channels: int, heads: int, *, dtype, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"CIM: {channels} channels cannot be divided over {heads} heads")
        self.heads = heads
        self.compress = nnx.Linear(feature_channels, channels, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        # Zero at the start: the block then hands F through.
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, f: jax.Array, h: jax.Array) -> jax.Array:
        h = self.compress(h)
        return f + attend(f, self.key(h), self.value(h), query=self.query, out=self.out, heads=self.heads)
