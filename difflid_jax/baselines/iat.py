"""IAT, the Illumination-Adaptive Transformer (Cui et al., BMVC 2022): a local and a global branch.

The local branch multiplies and adds maps; ten learned queries attend to the whole image and predict a colour
matrix and a gamma. Source: IAT_enhance/model of cuiziteng/Illumination-Adaptive-Transformer.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.baselines.layers import conv

LOCAL, GLOBAL, HEADS, QUERIES = 16, 64, 4, 10

Features = Float[Array, "b h w c"]


class IAT(nnx.Module):
    """Low-light images in [0,1] → enhanced images in [1e-8, 1]."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = conv(3, LOCAL, 3, rngs=rngs)
        self.mul_blocks = nnx.List([LocalBlock(rngs=rngs) for _ in range(3)])
        self.add_blocks = nnx.List([LocalBlock(rngs=rngs) for _ in range(3)])
        self.mul_end = conv(LOCAL, 3, 3, rngs=rngs)
        self.add_end = conv(LOCAL, 3, 3, rngs=rngs)
        self.global_branch = GlobalBranch(rngs=rngs)

    def __call__(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        f = jax.nn.leaky_relu(self.stem(low), 0.2)
        multiply = jax.nn.relu(self.mul_end(_through(self.mul_blocks, f) + f))
        add = jnp.tanh(self.add_end(_through(self.add_blocks, f) + f))
        gamma, colour = self.global_branch(low)
        enhanced = jnp.einsum("bhwc,bdc->bhwd", low * multiply + add, colour, precision="highest")
        return jnp.clip(enhanced, 1e-8, 1) ** gamma[:, None, None]


class LocalBlock(nnx.Module):
    """A transformer block with a depthwise 5×5 convolution in place of attention."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.pos_embed = conv(LOCAL, LOCAL, 3, groups=LOCAL, rngs=rngs)
        self.norm1 = ColourNorm(rngs=rngs)
        self.conv1 = conv(LOCAL, LOCAL, 1, rngs=rngs)
        self.attn = conv(LOCAL, LOCAL, 5, groups=LOCAL, rngs=rngs)
        self.conv2 = conv(LOCAL, LOCAL, 1, rngs=rngs)
        self.scale1 = nnx.Param(jnp.full(LOCAL, 1e-4))
        self.norm2 = ColourNorm(rngs=rngs)
        self.fc1 = conv(LOCAL, 4 * LOCAL, 1, rngs=rngs)
        self.fc2 = conv(4 * LOCAL, LOCAL, 1, rngs=rngs)
        self.scale2 = nnx.Param(jnp.full(LOCAL, 1e-4))

    def __call__(self, f: Features) -> Features:
        f = f + self.pos_embed(f)
        f = f + self.scale1[...] * self.conv2(self.attn(self.conv1(self.norm1(f))))
        return f + self.scale2[...] * self.fc2(_gelu(self.fc1(self.norm2(f))))


class ColourNorm(nnx.Module):
    """The reference's Aff_channel: a learned mix of channels, then scale and offset."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.mix = nnx.Linear(LOCAL, LOCAL, use_bias=False, precision="highest", rngs=rngs)
        self.scale = nnx.Param(jnp.ones(LOCAL))
        self.bias = nnx.Param(jnp.zeros(LOCAL))

    def __call__(self, f: Features) -> Features:
        return self.mix(f) * self.scale[...] + self.bias[...]


class GlobalBranch(nnx.Module):
    """images → (gamma (B,1), colour matrices (B,3,3))."""

    def __init__(self, *, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int, *, use_bias: bool = True) -> nnx.Linear:
            return nnx.Linear(inputs, outputs, use_bias=use_bias, precision="highest", rngs=rngs)

        self.embed1 = conv(3, GLOBAL // 2, 3, stride=2, padding=1, rngs=rngs)
        self.embed_norm1 = nnx.BatchNorm(GLOBAL // 2, use_running_average=True, epsilon=1e-5, rngs=rngs)
        self.embed2 = conv(GLOBAL // 2, GLOBAL, 3, stride=2, padding=1, rngs=rngs)
        self.embed_norm2 = nnx.BatchNorm(GLOBAL, use_running_average=True, epsilon=1e-5, rngs=rngs)
        self.pos_embed = conv(GLOBAL, GLOBAL, 3, groups=GLOBAL, rngs=rngs)
        self.norm1 = nnx.LayerNorm(GLOBAL, epsilon=1e-5, rngs=rngs)
        self.queries = nnx.Param(jnp.ones((QUERIES, GLOBAL)))
        self.key = linear(GLOBAL, GLOBAL, use_bias=False)
        self.value = linear(GLOBAL, GLOBAL, use_bias=False)
        self.proj = linear(GLOBAL, GLOBAL)
        self.norm2 = nnx.LayerNorm(GLOBAL, epsilon=1e-5, rngs=rngs)
        self.fc1 = linear(GLOBAL, 4 * GLOBAL)
        self.fc2 = linear(4 * GLOBAL, GLOBAL)
        self.gamma = linear(GLOBAL, 1)
        self.gamma_base = nnx.Param(jnp.ones(1))
        self.colour = linear(GLOBAL, 1)
        self.colour_base = nnx.Param(jnp.eye(3))

    def __call__(self, low: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 1"], Float[Array, "b 3 3"]]:
        f = _gelu(self.embed_norm1(self.embed1(low)))
        f = self.embed_norm2(self.embed2(f))
        f = f + self.pos_embed(f)
        tokens = self.norm1(f.reshape(f.shape[0], -1, GLOBAL))
        split = (*tokens.shape[:2], HEADS, GLOBAL // HEADS)
        keys, values = self.key(tokens).reshape(split), self.value(tokens).reshape(split)
        queries = jnp.broadcast_to(
            self.queries[...].reshape(QUERIES, HEADS, -1), (len(low), QUERIES, *split[2:])
        )
        attended = jax.nn.dot_product_attention(queries, keys, values)
        found = self.proj(attended.reshape(len(low), QUERIES, GLOBAL))
        found = found + self.fc2(_gelu(self.fc1(self.norm2(found))))
        gamma = self.gamma(found[:, 0]) + self.gamma_base[...]
        colour = self.colour(found[:, 1:]).reshape(-1, 3, 3) + self.colour_base[...]
        return gamma, colour


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _through(blocks: nnx.List, f: Features) -> Features:
    for block in blocks:
        f = block(f)
    return f
