"""Multi-head attention of every pixel over few keys: cheap for few keys, in bounded memory for many.

    out = W_O · Softmax(QKᵀ/√d) V,    Q = W_Q F

Products of matrices may be taken in any order. With M keys and C channels, Softmax(F (W_Q Kᵀ/√d)) (V W_O)
costs 2·heads·M multiplications per pixel and channel, projecting first 2·(C + M): for the 16 keys of a
training crop the former is cheaper, and needs no split into heads of the large map.
"""

import jax
import jax.numpy as jnp
from flax import nnx

# Scores held at once: 2²⁴ float32 are 64 MiB.
_MAX_SCORES = 1 << 24


def attend(
    f: jax.Array, k: jax.Array, v: jax.Array, *, query: nnx.Linear, out: nnx.Linear, heads: int
) -> jax.Array:
    """W_O · Softmax(QKᵀ/√d) V for f (B,H,W,C) → (B,H,W,C'); k and v (B,H',W',D), Q = query(f) (B,H,W,D).

    D is divided over the heads, d = D / heads; softmax is float32.
    """
    b, h, w, c = f.shape
    k, v = (x.reshape(b, -1, heads, x.shape[-1] // heads) for x in (k, v))
    keys = k.shape[1]
    if heads * keys <= 2 * (c + keys):
        return _project_last(f.reshape(b, h * w, c), k, v, query, out).reshape(b, h, w, -1)
    q = query(f).reshape(b, h * w, heads, -1)
    return out(_in_chunks(q, k, v).reshape(b, h, w, -1))


def _project_last(f, k, v, query: nnx.Linear, out: nnx.Linear) -> jax.Array:
    b, keys, heads, d = k.shape
    w_q, b_q, w_o, b_o = (x[...].astype(f.dtype) for x in (query.kernel, query.bias, out.kernel, out.bias))
    k = k / jnp.asarray(d**0.5, k.dtype)
    folded_k = jnp.einsum("chd,bmhd->bchm", w_q.reshape(-1, heads, d), k).reshape(b, -1, heads * keys)
    offset = jnp.einsum("hd,bmhd->bhm", b_q.reshape(heads, d), k).reshape(b, 1, heads * keys)
    folded_v = jnp.einsum("bmhd,hdc->bhmc", v, w_o.reshape(heads, d, -1)).reshape(b, heads * keys, -1)
    scores = (f @ folded_k + offset).reshape(*f.shape[:2], heads, keys)
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(f.dtype)
    return weights.reshape(*f.shape[:2], heads * keys) @ folded_v + b_o


def _in_chunks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax(QKᵀ/√d)V for q (B,N,heads,d), a chunk of queries after the other where N × M is large."""
    batch, queries, heads, _ = q.shape
    chunk = max(1, _MAX_SCORES // (batch * heads * k.shape[1]))
    if queries <= chunk:
        return jax.nn.dot_product_attention(q, k, v)
    count = -(-queries // chunk)
    padded = jnp.pad(q, ((0, 0), (0, count * chunk - queries), (0, 0), (0, 0)))
    chunks = jnp.moveaxis(padded.reshape(batch, count, chunk, *q.shape[2:]), 1, 0)
    attended = jax.lax.map(lambda part: jax.nn.dot_product_attention(part, k, v), chunks)
    return jnp.moveaxis(attended, 0, 1).reshape(padded.shape)[:, :queries]
