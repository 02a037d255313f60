"""Attention together with its projections, in chunks that stay in a CPU's cache.

Matrices may be multiplied in any order. With M keys and C channels, Softmax(F (W_Q Kᵀ/√d)) (V W_O) takes
2·heads·M multiplications per pixel and channel, projecting first 2·(C + M): for the 16 keys of a training
crop the former is cheaper.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from difflid_jax.layers.attention import Attend, in_chunks

# Attention scores held at once: 512 KiB of float32 per core.
MAX_SCORES = (1 << 17) * (os.cpu_count() or 1)
# exp of an eighth of plus or minus this, and sums of it, are well within the range of float32; the largest of
# so many weights is at least 1/4096, its eighth power 1e-29.
_MAX_SCORE = 560.0
_MAX_KEYS = 4096


def content_integration(
    cim: nnx.Module, f: Float[Array, "b h w c"], h: Float[Array, "b m n d"]
) -> Float[Array, "b h w c"]:
    """`ContentIntegration.__call__` of `cim`."""
    h = cim.compress(h)
    return f + attend(f, cim.key(h), cim.value(h), query=cim.query, out=cim.out, heads=cim.heads)


def attend(
    f: Float[Array, "b h w c"],
    k: Float[Array, "b m n d"],
    v: Float[Array, "b m n d"],
    *,
    query: nnx.Linear,
    out: nnx.Linear,
    heads: int,
    max_scores: int = MAX_SCORES,
) -> Float[Array, "b h w c2"]:
    """out(attention(query(f), k, v, heads=heads)), with at most `max_scores` scores held at once."""
    batch, height, width, channels = f.shape
    k, v = (jnp.moveaxis(x.reshape(batch, -1, heads, x.shape[-1] // heads), 2, 1) for x in (k, v))
    keys, d = k.shape[2:]
    w_q, b_q, w_o, b_o = (x[...].astype(f.dtype) for x in (query.kernel, query.bias, out.kernel, out.bias))
    w_q, b_q, w_o = w_q.reshape(-1, heads, d), b_q.reshape(heads, d), w_o.reshape(heads, d, -1)
    k = k / jnp.asarray(d**0.5, k.dtype)

    def chunks(attend_some: Attend, k: jax.Array, v: jax.Array) -> jax.Array:
        return in_chunks(attend_some, f, k, v, scores=heads * keys, max_scores=max_scores)

    def project_first() -> jax.Array:
        # The softmax's sum over the keys is one more row of the product with V: Σₘ eˢ [Vₘ, 1].
        extended = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        return chunks(_projecting_first(w_q, b_q, w_o, b_o), k, extended)

    def project_last(softmax: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return chunks(_projecting_last(softmax, heads, b_o), folded_k, folded_v)

    # The number of keys is symbolic in an exported program.
    if not isinstance(keys, int) or heads * keys > 2 * (channels + keys):
        return project_first().reshape(batch, height, width, -1)
    # F and 1 times K: the queries' bias is the last row.
    folded_k = jnp.einsum("chd,bhmd->bchm", jnp.concatenate([w_q, b_q[None]]), k)
    folded_k = folded_k.reshape(batch, -1, heads * keys)
    folded_v = jnp.einsum("bhmd,hdc->bhmc", v, w_o).reshape(batch, heads * keys, -1)
    if keys > _MAX_KEYS:
        return project_last(jax.nn.softmax).reshape(batch, height, width, -1)
    # |(F, 1)·K| ≤ ‖(F, 1)‖‖K‖ (Cauchy and Schwarz).
    squares = (_squares(f, -1).max(initial=0) + 1) * _squares(folded_k, -2).max()
    bounded = lax.stop_gradient(squares) < _MAX_SCORE**2
    attended = lax.cond(
        bounded, lambda: project_last(_softmax_of_bounded), lambda: project_last(jax.nn.softmax)
    )
    return attended.reshape(batch, height, width, -1)


def _projecting_first(w_q: jax.Array, b_q: jax.Array, w_o: jax.Array, b_o: jax.Array) -> Attend:
    """The queries lie along the last axis, so that a maximum over the keys compares long rows."""

    def attend_some(f: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q = jnp.einsum("...nc,chd->...hdn", f, w_q) + b_q[..., None]
        scores = jnp.einsum("...hmd,...hdn->...hmn", k, q, preferred_element_type=jnp.float32)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(-2, keepdims=True))).astype(v.dtype)
        sums = jnp.einsum("...hmd,...hmn->...hdn", v, weights, preferred_element_type=jnp.float32)
        attended = (sums[..., :-1, :] / sums[..., -1:, :]).astype(f.dtype)
        return jnp.einsum("...hdn,hdc->...nc", attended, w_o) + b_o

    return attend_some


def _projecting_last(softmax: Callable[[jax.Array], jax.Array], heads: int, b_o: jax.Array) -> Attend:
    """The projections are multiplied into k, whose last row is a bias, and v."""

    def attend_some(f: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        scores = (f @ k[..., :-1, :] + k[..., -1:, :]).reshape(*f.shape[:-1], heads, -1)
        weights = softmax(scores.astype(jnp.float32)).astype(f.dtype)
        return weights.reshape(*f.shape[:-1], -1) @ v + b_o

    return attend_some


def _squares(x: jax.Array, axis: int) -> jax.Array:
    return jnp.square(x.astype(jnp.float32)).sum(axis)


@jax.custom_jvp
def _softmax_of_bounded(scores: jax.Array) -> jax.Array:
    """Softmax over the last axis of up to `_MAX_KEYS` float32 scores between ±`_MAX_SCORE`.

    Softmax(s)ₘ ∝ (exp(sₘ/8) / Σ exp(s/8))⁸ stays within float32 without a maximum: finding the maximum of 16
    scores takes as long as the rest.
    """
    root = jnp.exp(scores / 8)
    weights = (root / root.sum(-1, keepdims=True)) ** 8
    return weights / weights.sum(-1, keepdims=True)


@_softmax_of_bounded.defjvp
def _softmax_of_bounded_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # As of any softmax; the derivative of the quotients would square the sums, beyond float32.
    weights = _softmax_of_bounded(*primals)
    (change,) = tangents
    return weights, weights * (change - (weights * change).sum(-1, keepdims=True))
