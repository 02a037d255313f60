"""Multi-head attention in bounded memory: the only one in this package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Attention scores held at once: 256 MiB of float32.
MAX_SCORES = 1 << 26

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attention(
    q: Float[Array, "b h w d"],
    k: Float[Array, "b m n d"],
    v: Float[Array, "b m n d"],
    *,
    heads: int,
    max_scores: int = MAX_SCORES,
) -> Float[Array, "b h w d"]:
    """Softmax(QKᵀ/√d) V over all m·n positions of k and v; the channels are divided over the `heads`.

    `jax.nn.dot_product_attention` (float32 softmax), split into chunks of queries if there are more than
    `max_scores` scores. Gradients recompute the chunks.
    """
    q, k, v = (x.reshape(*x.shape[:3], heads, x.shape[3] // heads) for x in (q, k, v))
    k, v = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (k, v))
    scores = heads * k.shape[1]
    attended = in_chunks(jax.nn.dot_product_attention, q, k, v, scores=scores, max_scores=max_scores)
    return attended.reshape(*q.shape[:3], -1)


def in_chunks(
    attend: Attend,
    q: Float[Array, "b h w *d"],
    k: Float[Array, "b ..."],
    v: Float[Array, "b ..."],
    *,
    scores: int,
    max_scores: int,
) -> Float[Array, "b n ..."]:
    """attend(q, k, v) for queries q of a grid, in chunks of at most `max_scores` scores; n = h·w.

    `attend` takes q (B,N,…), k and v, or (N,…) and one image's k and v. `scores`: number per query.
    """
    batch, height, width = q.shape[:3]
    if not isinstance(height * width * scores, int) or (
        not isinstance(batch, int) and height * width * scores > max_scores
    ):
        # Sizes are symbolic, in an exported program: one row at a time.
        rows = jax.lax.map(lambda row: attend(row, k, v), jnp.moveaxis(q, 1, 0))
        return jnp.moveaxis(rows, 0, 1).reshape(batch, height * width, *rows.shape[3:])
    queries = height * width
    q = q.reshape(batch, queries, *q.shape[3:])
    if not isinstance(batch, int) or batch * queries * scores <= max_scores:
        return attend(q, k, v)
    # Recomputing the scores takes less time than reading them back from memory.
    attend = jax.checkpoint(attend)
    count = _chunks(queries, max(1, max_scores // scores))
    chunk = -(-queries // count)

    def attend_image(image: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = image
        if count == 1:
            return attend(q, k, v)
        q = jnp.pad(q, [(0, count * chunk - queries)] + [(0, 0)] * (q.ndim - 1))
        q = q.reshape(count, chunk, *q.shape[1:])
        attended = jax.lax.map(lambda part: attend(part, k, v), q)
        return attended.reshape(count * chunk, *attended.shape[2:])[:queries]

    if batch == 1:
        # A loop of one iteration would copy its input.
        return attend_image((q[0], k[0], v[0]))[None]
    return jax.lax.map(attend_image, (q, k, v), batch_size=max(1, max_scores // (queries * scores)))


def _chunks(queries: int, size: int) -> int:
    """The number of chunks of at most `size`; up to twice as many if they are then equal (no padding)."""
    least = -(-queries // size)
    return next((count for count in range(least, 2 * least) if queries % count == 0), least)
