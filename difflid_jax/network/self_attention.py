"""Self-attention that stands in for CIM or HAE in the ablations (paper Table 2).

The paper replaces each module by "self-attention with a similar number of parameters" and says no more.
Ours, a reading of our own: queries from F at its resolution, keys and values from F average-pooled to the
grid of h (over all 16,384 positions of a 128 px crop the scores alone would take 1 GiB a head), and an inner
width chosen so that the parameters equal those of the module replaced. It sees nothing of h but its grid.
"""

import jax
from flax import nnx

from difflid_jax.layers.attention import attend


class SelfAttention(nnx.Module):
    """F (B,H,W,C), grid (H',W') → (B,H,W,C), with about `parameters` parameters."""

    def __init__(self, channels: int, parameters: int, heads: int, *, dtype, rngs: nnx.Rngs):
        # Four projections C↔D with biases: 4·C·D + 3·D + C parameters.
        inner = max(1, round((parameters - channels) / (4 * channels + 3) / heads)) * heads
        self.heads = heads
        self.query = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(channels, inner, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(inner, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, f: jax.Array, grid: tuple[int, int]) -> jax.Array:
        pooled = _pool(f, grid)
        return f + attend(
            f, self.key(pooled), self.value(pooled), query=self.query, out=self.out, heads=self.heads
        )


def _pool(f: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Averages of f over a grid: exact where it divides f's size, else (and where f is smaller) resampled."""
    b, h, w, c = f.shape
    rows, columns = grid
    if h % rows == 0 and w % columns == 0:
        return f.reshape(b, rows, h // rows, columns, w // columns, c).mean((2, 4))
    return jax.image.resize(f, (b, rows, columns, c), "linear")
