"""Multi-head attention of many queries over few keys, in bounded memory."""

import jax
import jax.numpy as jnp

# Scores held at once, per batch: 2²⁴ float32 are 64 MiB.
_MAX_SCORES = 1 << 24


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(QKᵀ/√d)V for q (B,N,heads,d), k and v (B,M,heads,d) → (B,N,heads,d).

    Softmax is float32. Queries are worked on in chunks when the (N × M) scores would be large: the result
    does not depend on it.
    """
    batch, queries, heads, _ = q.shape
    chunk = max(1, _MAX_SCORES // (batch * heads * k.shape[1]))
    if queries <= chunk:
        return jax.nn.dot_product_attention(q, k, v)
    count = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, count * chunk - queries), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(batch, count, chunk, *q.shape[2:]), 1, 0)
    attended = jax.lax.map(lambda part: jax.nn.dot_product_attention(part, k, v), chunks)
    return jnp.moveaxis(attended, 0, 1).reshape(padded.shape)[:, :queries]


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """(B,H,W,C) → (B,H·W,heads,C/heads)."""
    b, h, w, c = x.shape
    return x.reshape(b, h * w, heads, c // heads)
