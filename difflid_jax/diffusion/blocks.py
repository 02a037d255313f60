"""The layers of the ADM U-Net (Dhariwal & Nichol 2021), in the order and arithmetic of OpenAI's code.

Reference: guided_diffusion/unet.py and nn.py of openai/guided-diffusion. Feature maps are (B,H,W,C) in the
compute dtype; normalisation statistics and softmax are float32; parameters are float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

GROUPS = 32
# Attention scores held at once, 256 MiB of float32. A photograph of 1600×1200 has 200 times as many at 1/8.
MAX_SCORES = 1 << 26

_uniform_fan_in = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def timestep_embedding(t: jax.Array, channels: int, max_period: float = 10_000.0) -> jax.Array:
    """Sinusoidal embedding [cos, sin] of timesteps t (B,), float or int, as float32 (B, channels)."""
    half = channels // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, channels % 2)))


def conv(inputs: int, outputs: int, size: int, *, stride: int = 1, zero: bool = False, dtype, rngs: nnx.Rngs):
    """A convolution with PyTorch's symmetric padding of size // 2; `zero` starts it at zero."""
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


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **options) -> jax.Array:
    """`lax.conv_general_dilated` of (B,H,W,C) with a kernel of odd sides and padding of half of them.

    On a CPU, where a map has fewer positions than the kernel, XLA leaves its fast path for loops that take 30
    times as long and more (3×3 on 2×2). There the same sums are one matrix product.
    """
    sides, taps = x.shape[1:3], kernel.shape[:2]
    # Sizes may be open, in an exported program.
    small = all(isinstance(side, int) for side in sides) and math.prod(sides) < math.prod(taps)
    if not small or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        [slice(i, i + side, stride) for i in range(n)]
        for side, stride, n in zip(sides, strides, taps, strict=True)
    )
    views = jnp.concatenate([x[:, row, column] for row in rows for column in columns], axis=-1)
    return views @ kernel.reshape(-1, kernel.shape[-1])


def linear(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=_uniform_fan_in, dtype=dtype, rngs=rngs)


def group_norm(channels: int, *, of, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """32 groups, eps 1e-5, computed and returned in float32, for inputs of dtype `of`.

    The variance of bfloat16 inputs is E[x²] − E[x]², which reads them once. Its error in float32 is far below
    that of the inputs, which have 8 bits.
    """
    return nnx.GroupNorm(
        channels,
        num_groups=GROUPS,
        epsilon=1e-5,
        use_fast_variance=jnp.dtype(of) == jnp.bfloat16,
        dtype=jnp.float32,
        rngs=rngs,
    )


def halve(x: jax.Array) -> jax.Array:
    """2×2 average pooling of (B,H,W,C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: jax.Array) -> jax.Array:
    """Nearest-neighbour enlargement of (B,H,W,C) to (B,2H,2W,C)."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class Downsample(nnx.Module):
    """Plain down-sampling: a 3×3 convolution with stride 2 (`resblock_updown=False`)."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, emb: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Plain up-sampling: nearest neighbour, then a 3×3 convolution (`resblock_updown=False`)."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.conv = conv(channels, channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, emb: jax.Array, key: jax.Array | None = None) -> jax.Array:
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
        dtype,
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

    def __call__(self, x: jax.Array, emb: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """x (B,H,W,inputs), emb (B,emb_channels) → (B,H',W',outputs). `key` turns dropout on."""
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

    def __init__(self, channels: int, *, heads: int, new_order: bool, dtype, rngs: nnx.Rngs):
        if channels % heads:
            raise ValueError(f"attention: {channels} channels cannot be divided over {heads} heads")
        self.heads = heads
        self.new_order = new_order
        self.dtype = dtype
        self.norm = group_norm(channels, of=dtype, rngs=rngs)
        self.qkv = linear(channels, 3 * channels, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(channels, channels, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, emb: jax.Array, key: jax.Array | None = None) -> jax.Array:
        b, h, w, c = x.shape
        qkv = self.qkv(self.norm(x).astype(self.dtype).reshape(b, h * w, c))
        if self.new_order:
            q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, self.heads, c // self.heads), 2, 0)
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, self.heads, 3, c // self.heads), 3, 0)
        attended = attend(q, k, v)
        return x + self.proj(attended.reshape(b, h, w, c))


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ/√d) v of (B,N,heads,d), over all N positions; queries go in turns where N is large."""
    b, n, heads, _ = q.shape
    turns = -(-b * heads * n * n // MAX_SCORES)
    if turns == 1:
        return jax.nn.dot_product_attention(q, k, v)
    size = -(-n // turns)
    turns = -(-n // size)
    padded = jnp.pad(q, ((0, 0), (0, turns * size - n), (0, 0), (0, 0)))
    parts = jnp.moveaxis(padded.reshape(b, turns, size, heads, -1), 1, 0)
    attended = jax.lax.map(lambda part: jax.nn.dot_product_attention(part, k, v), parts)
    return jnp.moveaxis(attended, 0, 1).reshape(b, turns * size, heads, -1)[:, :n]
