"""Multi-head attention of every pixel over few keys: cheap for few keys, in bounded memory for many.

    out = W_O · Softmax(QKᵀ/√d) V,    Q = W_Q F

Products of matrices may be taken in any order. With M keys and C channels, Softmax(F (W_Q Kᵀ/√d)) (V W_O)
costs 2·heads·M multiplications per pixel and channel, projecting first 2·(C + M): for the 16 keys of a
training crop the former is cheaper.

Else the queries lie along the last axis: a maximum over the keys compares long rows, and the softmax's sum
over the keys is one more row of the product with V, Σₘ eˢ [Vₘ, 1].

A softmax is the same for scores less any number, and their maximum keeps exp from overflow. To find the
maximum of 16 takes as long as the rest: on a CPU, where no score can be beyond `_LARGEST`, it is left out,
and Softmax(s)ₘ ∝ (exp(sₘ/8) / Σ exp(s/8))⁸ keeps within float32.

Queries are taken a chunk after the other, from F to `out`, so that all that belongs to a chunk stays in a
CPU's cache.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

# Scores held at once: 512 KiB for a core of a CPU.
_MAX_SCORES = {"cpu": (1 << 17) * (os.cpu_count() or 1)}
_MAX_SCORES_ELSEWHERE = 1 << 26
# exp of an eighth of plus or minus this, and sums of it, are far inside of float32; the largest of so many
# weights is at least 1/4096, its eighth power 1e-29.
_LARGEST = 560.0
_MOST_KEYS = 4096

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attend(
    f: jax.Array, k: jax.Array, v: jax.Array, *, query: nnx.Linear, out: nnx.Linear, heads: int
) -> jax.Array:
    """W_O · Softmax(QKᵀ/√d) V for f (B,H,W,C) → (B,H,W,C'); k and v (B,H',W',D), Q = query(f) (B,H,W,D).

    D is divided over the heads, d = D / heads; softmax is float32.
    """
    b, h, w, c = f.shape
    k, v = (jnp.moveaxis(x.reshape(b, -1, heads, x.shape[-1] // heads), 2, 1) for x in (k, v))
    keys, d = k.shape[2:]
    w_q, b_q, w_o, b_o = (x[...].astype(f.dtype) for x in (query.kernel, query.bias, out.kernel, out.bias))
    w_q, b_q, w_o = w_q.reshape(-1, heads, d), b_q.reshape(heads, d), w_o.reshape(heads, d, -1)
    k = k / jnp.asarray(d**0.5, k.dtype)
    if not isinstance(b * h * w * keys, int):
        # Sizes left open (jax.export): a row after the other.
        attend_some, k, v = _project_first(k, v, w_q, b_q, w_o, b_o)
        rows = jax.lax.map(lambda row: attend_some(row, k, v), jnp.moveaxis(f, 1, 0))
        return jnp.moveaxis(rows, 0, 1)
    f = f.reshape(b, h * w, c)
    if heads * keys > 2 * (c + keys):
        attended = _in_chunks(*_project_first(k, v, w_q, b_q, w_o, b_o), f, heads * keys)
    else:
        attended = _attend_projecting_last(f, k, v, w_q, b_q, w_o, b_o)
    return attended.reshape(b, h, w, -1)


def _project_first(k, v, w_q, b_q, w_o, b_o) -> tuple[Attend, jax.Array, jax.Array]:
    def attend_some(f: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q = jnp.einsum("...nc,chd->...hdn", f, w_q) + b_q[..., None]
        scores = jnp.einsum("...hmd,...hdn->...hmn", k, q, preferred_element_type=jnp.float32)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-2, keepdims=True))).astype(v.dtype)
        sums = jnp.einsum("...hmd,...hmn->...hdn", v, weights, preferred_element_type=jnp.float32)
        attended = (sums[..., :-1, :] / sums[..., -1:, :]).astype(f.dtype)
        return jnp.einsum("...hdn,hdc->...nc", attended, w_o) + b_o

    return attend_some, k, jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)


def _attend_projecting_last(f, k, v, w_q, b_q, w_o, b_o) -> jax.Array:
    b, heads, keys, _ = k.shape
    # F and 1 times K: the queries' bias is the last row.
    w_q = jnp.concatenate([w_q, b_q[None]])
    folded_k = jnp.einsum("chd,bhmd->bchm", w_q, k).reshape(b, -1, heads * keys)
    folded_v = jnp.einsum("bhmd,hdc->bhmc", v, w_o).reshape(b, heads * keys, -1)

    def attended(softmax: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def attend_some(f: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            scores = (f @ k[..., :-1, :] + k[..., -1:, :]).reshape(*f.shape[:-1], heads, keys)
            weights = softmax(scores.astype(jnp.float32)).astype(f.dtype)
            return weights.reshape(*f.shape[:-1], heads * keys) @ v + b_o

        return _in_chunks(attend_some, folded_k, folded_v, f, heads * keys)

    if jax.default_backend() != "cpu" or keys > _MOST_KEYS:
        return attended(jax.nn.softmax)
    # |(F, 1)·K| ≤ ‖(F, 1)‖‖K‖ (Cauchy and Schwarz).
    squares = (_squares(f, -1).max(initial=0) + 1) * _squares(folded_k, -2).max()
    bounded = jax.lax.stop_gradient(squares) < _LARGEST**2
    return jax.lax.cond(bounded, lambda: attended(_softmax_of_bounded), lambda: attended(jax.nn.softmax))


def _squares(x: jax.Array, axis: int) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum(axis)


@jax.custom_jvp
def _softmax_of_bounded(scores: jax.Array) -> jax.Array:
    """Softmax over the last axis, of up to `_MOST_KEYS` float32 scores between ±`_LARGEST`."""
    root = jnp.exp(scores / 8)
    weights = (root / root.sum(-1, keepdims=True)) ** 8
    return weights / weights.sum(-1, keepdims=True)


@_softmax_of_bounded.defjvp
def _softmax_of_bounded_jvp(primals, tangents):
    # As of any softmax; that of the quotients would square the sums, beyond float32.
    weights = _softmax_of_bounded(*primals)
    (change,) = tangents
    return weights, weights * (change - (weights * change).sum(-1, keepdims=True))


def _in_chunks(attend_some: Attend, k: jax.Array, v: jax.Array, f: jax.Array, scores: int) -> jax.Array:
    """attend_some(f (B,N,C), k, v), a chunk after the other; `scores` are those of one of N."""
    batch, queries, _ = f.shape
    most = _MAX_SCORES.get(jax.default_backend(), _MAX_SCORES_ELSEWHERE)
    if batch * queries * scores <= most:
        return attend_some(f, k, v)
    # Computing scores again in the cache takes less than reading them back from memory.
    again = jax.checkpoint(attend_some)
    count = _chunks(queries, max(1, most // scores))
    chunk = -(-queries // count)

    def attend_one(image: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        f, k, v = image
        if count == 1:
            return again(f, k, v)
        chunks = jnp.pad(f, [(0, count * chunk - queries), (0, 0)]).reshape(count, chunk, -1)
        attended = jax.lax.map(lambda part: again(part, k, v), chunks)
        return attended.reshape(count * chunk, -1)[:queries]

    if batch == 1:
        # A loop of one turn would copy what it goes over.
        return attend_one((f[0], k[0], v[0]))[None]
    return jax.lax.map(attend_one, (f, k, v), batch_size=max(1, most // (queries * scores)))


def _chunks(queries: int, most: int) -> int:
    """Into how many chunks of `most` at the most: equal ones if up to twice as many are, to copy nothing."""
    least = -(-queries // most)
    return next((count for count in range(least, 2 * least) if queries % count == 0), least)
