"""Content integration module (paper Sec. 4.2, Eq. 6): every pixel queries the h-space at t₁ for content.

h' = W_c h,  Q = W_Q F,  K = W_K h',  V = W_V h'
F' = W_O · Softmax(QKᵀ/√d) V + F
"""

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.attention import attention
from difflid_jax.layers.cpu import on_cpu
from difflid_jax.layers.cpu.attention import content_integration


class ContentIntegration(nnx.Module):
    """F (B,H,W,C), h (B,M,N,C') → F' (B,H,W,C). Multi-head, with d = C / heads; all 1×1 convolutions."""

    def __init__(self, channels: int, feature_channels: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"CIM: {channels} channels cannot be divided over {heads} heads")
        self.heads = heads
        self.compress = nnx.Linear(feature_channels, channels, dtype=dtype, rngs=rngs)
        self.query = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
        # Zero at the start: the block then returns F.
        self.out = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    @on_cpu(content_integration)
    def __call__(self, f: Float[Array, "b h w c"], h: Float[Array, "b m n d"]) -> Float[Array, "b h w c"]:
        h = self.compress(h)
        k, v = self.key(h), self.value(h)

        # Gradients recompute Q and the scores, which take more memory than F.
        @jax.checkpoint
        def attend(f: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention(self.query(f), k, v, heads=self.heads)

        return self.out(attend(f, k, v)) + f
