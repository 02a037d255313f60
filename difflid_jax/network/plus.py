"""DiffLI²D+: the paper's U-Net with three changes to its block. Ours, not the paper's.

- A gated depthwise branch after CIM and HAE gives the block what it lacks, a spatial, non-linear part:

      F_o + W₂ (u ⊙ v),    (u, v) = split(DW₃ₓ₃(W₁ LayerNorm(F_o)))

- The channel gate of Eq. 8 pools h instead of F'_m: g = σ(W_L · AvgPool(h)). A crop and the whole image then
  have the same gate, so tiles agree and nothing depends on padding.
- h may belong to a larger image than F: `window` says which part of it F covers, per sample. A network can
  so be trained on crops with the features of whole images.

3×3 convolutions repeat the border instead of padding with zeros: a constant image stays constant.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from difflid_jax.network.cim import ContentIntegration
from difflid_jax.network.difflid import NetworkSpec

WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class PlusSpec(NetworkSpec):
    """`NetworkSpec` and the number of gated depthwise branches per block."""

    branches: int = 1

    def __post_init__(self):
        super().__post_init__()
        if (self.content, self.haze) != ("cim", "hae"):
            raise ValueError("network.kind plus: always has CIM and HAE; the ablations are of kind paper")
        if not 0 <= self.branches <= 8:
            raise ValueError(f"network.branches: expected 0 to 8, found {self.branches}")

    @property
    def reach(self) -> int:
        """As of the paper's network, and a pixel of its level further for every branch on the way."""
        return super().reach + self.branches * (3 * self.stride - 2)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; `network` names the kind."""
        return {"network": "plus", **super().to_dict()}

    @classmethod
    def from_dict(cls, fields) -> "PlusSpec":
        """The inverse of `to_dict`. Raises ValueError that names unknown fields."""
        return super().from_dict({name: value for name, value in fields.items() if name != "network"})


class Conv3x3(nnx.Module):
    """3×3 convolution that repeats the border: (B,H,W,C) → (B,H,W,C')."""

    def __init__(self, inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs, **options):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), padding="VALID", dtype=dtype, rngs=rngs, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(_repeat_border(x))


class Depthwise3x3(nnx.Module):
    """3×3 convolution of every channel by itself, repeating the border: (B,H,W,C) → (B,H,W,C)."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(
            nnx.initializers.lecun_normal()(rngs.params(), (9, channels)).reshape(3, 3, -1)
        )
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise(_repeat_border(x), self.kernel[...].astype(self.dtype)) + self.bias[...].astype(
            self.dtype
        )


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (B,H+2,W+2,C), kernel (3,3,C) → (B,H,W,C), each channel convolved by itself.

    A sum of nine products, and so are its gradients: XLA's grouped convolution, and the gradient that JAX
    derives from this sum, take thirty times as long on CPU.
    """
    x = jax.lax.optimization_barrier(x)
    height, width = x.shape[1] - 2, x.shape[2] - 2
    return sum(kernel[i, j] * x[:, i : i + height, j : j + width] for i in range(3) for j in range(3))


def _depthwise_backward(residuals, g):
    # Computed once: XLA would fuse what gives x and g into each of the nine products.
    x, g = jax.lax.optimization_barrier((residuals[0], g))
    kernel = residuals[1]
    channels = g.shape[-1]
    # Seen from the input, the kernel is mirrored.
    padded = jnp.pad(g, [(0, 0), (2, 2), (2, 2), (0, 0)])
    ones = jnp.ones((1, g.size // channels), g.dtype)

    def of_tap(_, tap):
        seen = jax.lax.dynamic_slice(x, (0, tap[0], tap[1], 0), g.shape)
        return None, ones @ jax.lax.optimization_barrier((seen * g).reshape(-1, channels))

    # A loop, so that one buffer serves all nine products.
    taps = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij"), -1).reshape(9, 2)
    _, by_tap = jax.lax.scan(of_tap, None, taps)
    return depthwise(padded, kernel[::-1, ::-1]), by_tap.reshape(kernel.shape)


depthwise.defvjp(lambda x, kernel: (depthwise(x, kernel), (x, kernel)), _depthwise_backward)


class GatedBranch(nnx.Module):
    """F + W₂ (u ⊙ v), (u, v) = split(DW₃ₓ₃(W₁ LayerNorm(F))): (B,H,W,C) → (B,H,W,C)."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.expand = nnx.Linear(channels, 2 * channels, dtype=dtype, rngs=rngs)
        self.depthwise = Depthwise3x3(2 * channels, dtype=dtype, rngs=rngs)
        zero = nnx.initializers.zeros
        self.reduce = nnx.Linear(channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)

    def __call__(self, f: jax.Array) -> jax.Array:
        u, v = jnp.split(self.depthwise(self.expand(self.norm(f))), 2, axis=-1)
        return f + self.reduce(u * v)


class WindowedEnhancement(nnx.Module):
    """Eqs. 7–8 with the gate pooled from h: F' (B,H,W,C), h (B,H',W',C') → F_o (B,H,W,C).

    W_γ h and W_β h are brought bilinearly to the `window` of h that F' covers. With the gate known,
    g ⊙ F'_m + F' = (1 + g ⊙ W_γ h) ⊙ F' + g ⊙ W_β h.
    """

    def __init__(self, channels: int, feature_channels: int, *, dtype, rngs: nnx.Rngs):
        zero = nnx.initializers.zeros
        self.scale = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.shift = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(feature_channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, f: jax.Array, h: jax.Array, window) -> jax.Array:
        gate = nnx.sigmoid(self.gate(h.mean((1, 2), keepdims=True)))
        maps = jnp.concatenate([1 + gate * self.scale(h), gate * self.shift(h)], -1)
        scale, shift = jnp.split(resize_window(maps, f.shape[1:3], window), 2, axis=-1)
        return scale * f + shift


def resize_window(maps: jax.Array, size: tuple[int, int], window) -> jax.Array:
    """The `window` of maps (B,H',W',C), bilinear, at (B,*size,C); pixel centres at half integers.

    window: (top, left, bottom, right) in [0,1], numbers or (B,4).
    """
    window = jnp.broadcast_to(jnp.asarray(window, maps.dtype), (maps.shape[0], 4))
    rows = _bilinear(size[0], maps.shape[1], window[:, 0], window[:, 2])
    columns = _bilinear(size[1], maps.shape[2], window[:, 1], window[:, 3])
    tall = jnp.einsum("bhi,bijc->bhjc", rows, maps)
    return jnp.einsum("bwj,bhjc->bhwc", columns, tall)


def _bilinear(size: int, cells: int, start: jax.Array, end: jax.Array) -> jax.Array:
    """Weights (B,size,cells) of `cells` at `size` positions between `start` and `end` (B,) in [0,1]."""
    position = (jnp.arange(size, dtype=start.dtype) + 0.5) / size
    position = (start[:, None] + (end - start)[:, None] * position) * cells - 0.5
    position = jnp.clip(position, 0, cells - 1)
    return jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(cells)))


class PlusBlock(nnx.Module):
    """CIM, HAE with its gate from h, then gated depthwise branches: F (B,H,W,C) → (B,H,W,C)."""

    def __init__(self, channels: int, spec: PlusSpec, *, dtype, rngs: nnx.Rngs):
        given = {"dtype": dtype, "rngs": rngs}
        self.content = ContentIntegration(channels, spec.feature_channels, spec.heads, **given)
        self.haze = WindowedEnhancement(channels, spec.feature_channels, **given)
        self.branches = nnx.List([GatedBranch(channels, **given) for _ in range(spec.branches)])

    def __call__(self, f, h_content, h_haze, window):
        f = self.content(f, h_content)
        f = self.haze(f, h_haze, window)
        for branch in self.branches:
            f = branch(f)
        return f


class DiffLI2DPlus(nnx.Module):
    """Hazy image and two feature maps in, restored image out, as `DiffLI2D`. Computes in `dtype`."""

    def __init__(self, spec: PlusSpec, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.spec = spec
        self.dtype = dtype
        widths, given = spec.widths, {"dtype": dtype, "rngs": rngs}
        inner = list(reversed(widths[:-1]))
        self.stem = Conv3x3(3, widths[0], **given)
        self.encoder = nnx.List([PlusBlock(c, spec, **given) for c in widths])
        self.down = nnx.List([Conv3x3(c, c // 2, use_bias=False, **given) for c in widths[:-1]])
        self.up = nnx.List([Conv3x3(2 * c, c, **given) for c in inner])
        self.skip = nnx.List([nnx.Linear(2 * c, c, **given) for c in inner])
        self.decoder = nnx.List([PlusBlock(c, spec, **given) for c in inner])
        self.head = Conv3x3(widths[0], 3, kernel_init=nnx.initializers.zeros, **given)

    def __call__(
        self,
        hazy: jax.Array,
        h_content: jax.Array,
        h_haze: jax.Array,
        *,
        gates=(),
        window=WHOLE,
    ) -> tuple[jax.Array, dict[str, tuple]]:
        """(restored (B,H,W,3) float32, {"gates": ()}).

        hazy (B,H,W,3) in [-1,1], H and W multiples of `spec.stride`; h_content and h_haze (B,H',W',C').
        window (4 numbers or (B,4)): the part (top, left, bottom, right), in [0,1], of the image of h_* that
        `hazy` shows. restored is not clipped. `gates` is for the interface of `DiffLI2D` and must be empty.
        """
        h_content, h_haze = h_content.astype(self.dtype), h_haze.astype(self.dtype)
        f, skips = self.stem(hazy.astype(self.dtype)), []
        for block, down in zip(self.encoder[:-1], self.down, strict=True):
            f = block(f, h_content, h_haze, window)
            skips.append(f)
            f = _pixel_unshuffle(down(f))
        f = self.encoder[-1](f, h_content, h_haze, window)
        for up, skip, block in zip(self.up, self.skip, self.decoder, strict=True):
            f = up(_twice(f))
            f = skip(jnp.concatenate([f, skips.pop()], -1))
            f = block(f, h_content, h_haze, window)
        restored = hazy.astype(jnp.float32) + self.head(f).astype(jnp.float32)
        return restored, {"gates": ()}


def _repeat_border(x: jax.Array) -> jax.Array:
    # By concatenation: the gradient of jnp.pad's mode "edge" takes ten times as long on CPU.
    x = jnp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    return jnp.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)


def _twice(x: jax.Array) -> jax.Array:
    """(B,H,W,C) → (B,2H,2W,C), bilinear."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "bilinear")


def _pixel_unshuffle(x: jax.Array) -> jax.Array:
    """(B,H,W,C) → (B,H/2,W/2,4C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
