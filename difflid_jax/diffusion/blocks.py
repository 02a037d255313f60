"""The layers of the ADM U-Net (Dhariwal & Nichol 2021), in the order and arithmetic of OpenAI's code.

Reference: guided_diffusion/unet.py and nn.py of openai/guided-diffusion. Feature maps are (B,H,W,C) in the
compute dtype; normalization statistics and softmax are float32; parameters are float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, PRNGKeyArray

from difflid_jax.diffusion.spec import GROUPS
from difflid_jax.layers.attention import attention
from difflid_jax.layers.convolution import convolve

_uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def timestep_embedding(
    t: Num[Array, " b"], channels: int, max_period: float = 10_000.0
) -> Float[Array, "b {channels}"]:
    """Sinusoidal embedding [cos, sin] of timesteps t, float32."""
    half = channels // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


def conv(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    zero: bool = False,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with PyTorch's symmetric padding of size // 2; `zero` initializes it to zero."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        kernel_init=nnx.initializers.zeros if zero else _uniform_fan_in,
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )


def linear(inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with PyTorch's initial weights."""
    return nnx.Linear(inputs, outputs, kernel_init=_uniform_fan_in, dtype=dtype, rngs=rngs)


class GroupNorm(nnx.GroupNorm):
    """Group norm that, if `use_fast_variance`, takes four kernels on a GPU instead of eight."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if not self.use_fast_variance:
            return super().__call__(x)
        x = x.astype(jnp.float32)
        # Both sums in one reduction, of complex numbers.
        grouped = jax.lax.complex(x, jnp.square(x)).reshape(*x.shape[:3], self.num_groups, -1)
        means = grouped.mean((1, 2, 4))[..., None]
        mean, square = jnp.real(means), jnp.imag(means)
        rate = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + self.epsilon)
        scale, bias = (param[...].reshape(self.num_groups, -1) for param in (self.scale, self.bias))
        scale, bias = scale * rate, bias - mean * scale * rate
        return x * scale.reshape(len(x), 1, 1, -1) + bias.reshape(len(x), 1, 1, -1)


def group_norm(channels: int, *, of: DTypeLike, rngs: nnx.Rngs) -> GroupNorm:
    """32 groups, eps 1e-5, computed and returned in float32, for inputs of dtype `of`.

    The variance of bfloat16 inputs is E[x²] − E[x]², which reads them once. Its error in float32 is far below
    that of the inputs, which have 8 bits.
    """
    return GroupNorm(
        channels,
        num_groups=GROUPS,
        epsilon=1e-5,
        use_fast_variance=jnp.dtype(of) == jnp.bfloat16,
        dtype=jnp.float32,
        rngs=rngs,
    )


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """2×2 average pooling."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Nearest-neighbour ×2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class Downsample(nnx.Module):
    """Plain down-sampling: a 3×3 convolution with stride 2 (`resblock_updown=False`)."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, stride=2, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Plain up-sampling: nearest neighbour, then a 3×3 convolution (`resblock_updown=False`)."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        return self.conv(double(x))


class ResBlock(nnx.Module):
    """Residual block conditioned on the timestep embedding (reference: ResBlock).

    `resample` is None, "down" or "up": both branches are resampled, the main one after its SiLU and before
    its first convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        emb_channels: int,
        *,
        scale_shift: bool,
        dropout: float = 0.0,
        resample: str | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = scale_shift
        self.dropout = dropout
        self.resample = resample
        self.dtype = dtype
        self.in_norm = group_norm(inputs, of=dtype, rngs=rngs)
        self.in_conv = conv(inputs, outputs, 3, dtype=dtype, rngs=rngs)
        self.emb_proj = linear(emb_channels, 2 * outputs if scale_shift else outputs, dtype=dtype, rngs=rngs)
        self.out_norm = group_norm(outputs, of=dtype, rngs=rngs)
        self.out_conv = conv(outputs, outputs, 3, zero=True, dtype=dtype, rngs=rngs)
        self.skip_conv = None if inputs == outputs else conv(inputs, outputs, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """x (B,H,W,inputs), emb (B,emb_channels) → (B,H',W',outputs). `key` enables dropout."""
        h = nnx.silu(self.in_norm(x)).astype(self.dtype)
        if self.resample == "down":
            h, x = halve(h), halve(x)
        elif self.resample == "up":
            h, x = double(h), double(x)
        h = self.in_conv(h)
        shift = self.emb_proj(nnx.silu(emb))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = self.out_norm(h) * (1 + scale) + shift
        else:
            h = self.out_norm(h + shift)
        h = nnx.silu(h).astype(self.dtype)
        if key is not None and self.dropout > 0:
            keep = jax.random.bernoulli(key, jnp.float32(1 - self.dropout), h.shape)
            h = jnp.where(keep, h / (1 - self.dropout), 0)
        h = self.out_conv(h)
        return (x if self.skip_conv is None else self.skip_conv(x)) + h


class AttentionBlock(nnx.Module):
    """Self-attention over all positions (reference: AttentionBlock).

    The 3C channels of the projection are (heads, 3, C/heads) in the legacy order and (3, heads, C/heads) in
    the new one (`new_order`).
    """

    def __init__(self, channels: int, *, heads: int, new_order: bool, dtype: DTypeLike, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"attention: {channels} channels cannot be divided over {heads} heads")
        self.heads = heads
        self.new_order = new_order
        self.dtype = dtype
        self.norm = group_norm(channels, of=dtype, rngs=rngs)
        self.qkv = linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], emb: Float[Array, "b e"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "b h w c"]:
        qkv = self.qkv(self.norm(x).astype(self.dtype))
        if self.new_order:
            q, k, v = jnp.split(qkv, 3, axis=-1)
        else:
            qkv = qkv.reshape(*x.shape[:3], self.heads, 3, -1)
            q, k, v = (part.reshape(x.shape) for part in jnp.moveaxis(qkv, 4, 0))
        return x + self.proj(attention(q, k, v, heads=self.heads))
