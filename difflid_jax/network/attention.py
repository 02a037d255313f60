"""Multi-head attention of every pixel over few keys: cheap for few keys, in bounded memory for many.

    out = W_O · Softmax(QKᵀ/√d) V,    Q = W_Q F

Products of matrices may be taken in any order. With M keys and C channels, Softmax(F (W_Q Kᵀ/√d)) (V W_O)
costs 2·heads·M multiplications per pixel and channel, projecting first 2·(C + M): for the 16 keys of a
training crop the former is cheaper, and needs no split into heads of the large map.

Queries are taken a chunk after the other, so that the scores of a chunk stay in a CPU's cache.
"""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

# Scores held at once. On a CPU 2 MiB of them stay in its cache, seven times as fast as 64 MiB that do not;
# for few keys 256 KiB a core are better still.
_MAX_SCORES = {"cpu": 1 << 19}
_MAX_SCORES_OF_FEW_KEYS = {"cpu": (1 << 16) * (os.cpu_count() or 1)}
_MAX_SCORES_ELSEWHERE = 1 << 26


def attend(
    f: jax.Array, k: jax.Array, v: jax.Array, *, query: nnx.Linear, out: nnx.Linear, heads: int
) -> jax.Array:
    """W_O · Softmax(QKᵀ/√d) V for f (B,H,W,C) → (B,H,W,C'); k and v (B,H',W',D), Q = query(f) (B,H,W,D).

    D is divided over the heads, d = D / heads; softmax is float32.
    """
    b, h, w, c = f.shape
    k, v = (x.reshape(b, -1, heads, x.shape[-1] // heads) for x in (k, v))
    keys = k.shape[1]
    if not isinstance(b * h * w * keys, int):
        # Sizes left open (jax.export): one order of the products, and rows, for all of them.
        rows = jax.lax.map(lambda row: _one_row(row, k, v, query, out), jnp.moveaxis(f, 1, 0))
        return jnp.moveaxis(rows, 0, 1)
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

    def attend_one(part: jax.Array) -> jax.Array:
        scores = (part @ folded_k + offset).reshape(*part.shape[:2], heads, keys)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(part.dtype)
        return weights.reshape(*part.shape[:2], heads * keys) @ folded_v + b_o

    chunks = _chunks(f, _MAX_SCORES_OF_FEW_KEYS, b * heads * keys)
    if len(chunks) == 1:
        return attend_one(f)
    # Computing scores again in the cache takes less than reading them back from memory.
    attended = jnp.moveaxis(jax.lax.map(jax.checkpoint(attend_one), chunks), 0, 1)
    return attended.reshape(b, -1, attended.shape[-1])[:, : f.shape[1]]


def _one_row(f, k, v, query: nnx.Linear, out: nnx.Linear) -> jax.Array:
    q = query(f).reshape(*f.shape[:2], *k.shape[2:])
    return out(jax.nn.dot_product_attention(q, k, v).reshape(*f.shape[:2], -1))


def _in_chunks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax(QKᵀ/√d)V for q (B,N,heads,d), a chunk of queries after the other where N × M is large.

    The queries lie along the last axis, so that a sum over the keys adds long rows.
    """
    batch, queries, heads, d = q.shape
    chunks = jnp.transpose(_chunks(q, _MAX_SCORES, batch * heads * k.shape[1]), (0, 1, 3, 4, 2))
    count = len(chunks)
    k, v = (jnp.moveaxis(x, 1, 2) for x in (k / jnp.asarray(d**0.5, k.dtype), v))

    def attend_one(part: jax.Array) -> jax.Array:
        scores = jnp.einsum("bhmd,bhdn->bhmn", k, part, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=2).astype(v.dtype)
        return jnp.einsum("bhmd,bhmn->bhdn", v, weights)

    attended = jax.lax.map(attend_one, chunks) if count > 1 else attend_one(chunks[0])[None]
    attended = jnp.transpose(attended, (1, 0, 4, 2, 3)).reshape(batch, -1, heads, d)
    return attended[:, :queries]


def _chunks(x: jax.Array, limits: Mapping[str, int], scores: int) -> jax.Array:
    """x (B,N,…) as (chunks,B,n,…), the last one filled up with zeros; `scores` are those of one of N."""
    most = limits.get(jax.default_backend(), _MAX_SCORES_ELSEWHERE)
    chunk = min(x.shape[1], max(1, most // scores))
    count = -(-x.shape[1] // chunk)
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, count * chunk - x.shape[1])
    padded = jnp.pad(x, padding)
    return jnp.moveaxis(padded.reshape(x.shape[0], count, chunk, *x.shape[2:]), 1, 0)
