"""Self-attention that replaces CIM or HAE in the ablations (paper Table 2).

The paper replaces each module by "self-attention with a similar number of parameters" and gives no details.
This is our reading: queries from F at its resolution, keys and values from F average-pooled to the grid of h
(over all 16,384 positions of a 128 px crop the scores alone would take 1 GiB per head), and an inner width
chosen so that the parameters equal those of the module replaced. Only the grid of h is used.
"""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.attention import attention
from difflid_jax.layers.cpu import on_cpu
from difflid_jax.layers.cpu.attention import attend
from difflid_jax.layers.resize import resize


class SelfAttention(nnx.Module):
    """F (B,H,W,C), h (B,M,N,C') → (B,H,W,C), with about `parameters` parameters."""

    def __init__(self, channels: int, parameters: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        # Four projections between C and D channels with biases: 4·C·D + 3·D + C parameters.
        inner = max(1, round((parameters - channels) / (4 * channels + 3) / heads)) * heads
        self.heads = heads
        self.query = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(inner, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, f: Float[Array, "b h w c"], h: Float[Array, "b m n d"]) -> Float[Array, "b h w c"]:
        pooled = _pool(f, h.shape[1:3])
        return f + self._attend(f, self.key(pooled), self.value(pooled))

    @on_cpu(lambda self, f, k, v: attend(f, k, v, query=self.query, out=self.out, heads=self.heads))
    def _attend(
        self, f: Float[Array, "b h w c"], k: Float[Array, "b m n d"], v: Float[Array, "b m n d"]
    ) -> Float[Array, "b h w c"]:
        return self.out(attention(self.query(f), k, v, heads=self.heads))


def _pool(f: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b m n c"]:
    """Averages of f over `grid` (m,n): exact if it divides f's size, else (also if f is smaller) resized."""
    b, h, w, c = f.shape
    rows, columns = grid
    if h % rows == 0 and w % columns == 0:
        return f.reshape(b, rows, h // rows, columns, w // columns, c).mean((2, 4))
    return resize(f, grid)
