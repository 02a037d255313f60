"""DiffLI²D+: the paper's U-Net with other blocks and, optionally, stem and head. Ours, not the paper's.

- Gated branches after CIM and HAE give the block what it lacks, a spatial, non-linear part:

      F + W₂ (u ⊙ v),    (u, v) = split(Conv₃ₓ₃(LayerNorm(F)))

- The channel gate of Eq. 8 pools h instead of F'_m: g = σ(W_L · AvgPool(h)). A crop and the whole image then
  have the same gate, so tiles agree and nothing depends on padding.
- h may belong to a larger image than F: `window` is the part of it that F covers, per sample. A network can
  thus be trained on crops with the features of whole images.

3×3 convolutions repeat the border instead of padding with zeros, so that a constant image gets no rim.

With `patch` 2, the network works at half of the image's size, on 2×2 pixels at once: with twice as many
channels it takes half of the time, and its convolutions see twice as far. With the head "affine" it predicts
how to undo the haze, J = I + a ⊙ I + b per pixel and channel, so that the image's own detail survives.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.resize import DOUBLED, WHOLE, Window, resize
from difflid_jax.network.difflid import (
    DiffLI2D,
    NetworkSpec,
    content_module,
    pixel_shuffle,
    pixel_unshuffle,
)
from difflid_jax.network.self_attention import SelfAttention
from difflid_jax.weights import schema

HEADS = ("sum", "affine")


@dataclasses.dataclass(frozen=True)
class PlusSpec(NetworkSpec):
    """`NetworkSpec`, the gated branches per block, the pixels per position and the head.

    patch: the first level has one position per patch×patch pixels. head: "sum", the paper's J = I + r, or
    "affine", J = I + a ⊙ I + b; haze is affine in J, with a = 1/t − 1 and b = −a A.
    """

    NETWORK = "plus"

    branches: int = 1
    patch: int = 1
    head: str = "sum"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.branches <= 8:
            raise ValueError(f"network.branches: expected 0 to 8, found {self.branches}")
        if self.patch not in (1, 2, 4):
            raise ValueError(f"network.patch: expected 1, 2 or 4, found {self.patch}")
        schema.check_choice("network.head", self.head, HEADS)

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this."""
        return self.patch * super().stride

    @property
    def reach(self) -> int:
        """As in the paper's network, plus one position of its level for every branch on the way."""
        return super().reach + self.branches * (3 * self.stride - 2 * self.patch)


class Conv3x3(nnx.Module):
    """3×3 convolution that repeats the border: (B,H,W,C) → (B,H,W,C')."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike, rngs: nnx.Rngs, **options: Any):
        self.conv = nnx.Conv(inputs, outputs, (3, 3), padding="VALID", dtype=dtype, rngs=rngs, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return self.conv(_repeat_border(x))


class PatchStem(Conv3x3):
    """Blocks of patch×patch pixels as channels, then the convolution: (B,H,W,C) → (B,H/patch,W/patch,C')."""

    def __init__(self, patch: int, inputs: int, outputs: int, **options: Any):
        super().__init__(inputs * patch**2, outputs, **options)
        self.patch = patch

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return super().__call__(pixel_unshuffle(x, self.patch))


class Up3x3(Conv3x3):
    """Bilinear ×2, then the convolution: (B,H,W,C) → (B,2H,2W,C').

    Both are linear: each of the four pixels that a pixel becomes is a 3×3 convolution of the small map, so
    one convolution to 4·C' channels and a pixel shuffle do the work, and the enlarged map is never made.
    """

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        kernel, bias = (value[...].astype(x.dtype) for value in (self.conv.kernel, self.conv.bias))
        weights = jnp.asarray(DOUBLED, x.dtype)
        kernel = jnp.einsum("pta,qsb,tsio->abipqo", weights, weights, kernel)
        y = jax.lax.conv_general_dilated(
            _repeat_border(x),
            kernel.reshape(*kernel.shape[:3], -1),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return pixel_shuffle(y) + bias


class GatedBranch(nnx.Module):
    """F + W₂ (u ⊙ v), (u, v) = split(Conv₃ₓ₃(LayerNorm(F))): (B,H,W,C) → (B,H,W,C)."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.conv = Conv3x3(channels, 2 * channels, dtype=dtype, rngs=rngs)
        zero = nnx.initializers.zeros
        self.reduce = nnx.Linear(channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)

    def __call__(self, f: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        u, v = jnp.split(self.conv(self.norm(f)), 2, axis=-1)
        return f + self.reduce(u * v)


class WindowedEnhancement(nnx.Module):
    """Eqs. 7–8 with the gate pooled from h: F' (B,H,W,C), h (B,H',W',C') → F_o (B,H,W,C).

    W_γ h and W_β h are brought bilinearly to the `window` of h that F' covers. With the gate known,
    g ⊙ F'_m + F' = (1 + g ⊙ W_γ h) ⊙ F' + g ⊙ W_β h.
    """

    def __init__(self, channels: int, feature_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        zero = nnx.initializers.zeros
        self.scale = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.shift = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(feature_channels, channels, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        f: Float[Array, "b h w c"],
        h: Float[Array, "b m n d"],
        window: Window | Float[Array, "b 4"] = WHOLE,
    ) -> Float[Array, "b h w c"]:
        gate = nnx.sigmoid(self.gate(h.mean((1, 2), keepdims=True)))
        maps = jnp.concatenate([1 + gate * self.scale(h), gate * self.shift(h)], -1)
        scale, shift = jnp.split(resize_window(maps, f.shape[1:3], window), 2, axis=-1)
        return scale * f + shift


def resize_window(
    maps: Float[Array, "b m n c"], size: tuple[int, int], window: Window | Float[Array, "b 4"] = WHOLE
) -> Float[Array, "b h w c"]:
    """`layers.resize.resize` with one window for all images or one for each."""
    windows = jnp.broadcast_to(jnp.asarray(window, jnp.float32), (maps.shape[0], 4))
    return jax.vmap(lambda x, part: resize(x[None], size, part)[0])(maps, windows)


class PlusBlock(nnx.Module):
    """CIM, HAE with its gate from h, or what replaces them in an ablation; then gated branches."""

    def __init__(self, channels: int, spec: PlusSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        made = {"dtype": dtype, "rngs": rngs}
        self.content = content_module(channels, spec, **made)
        if spec.haze == "hae":
            self.haze = WindowedEnhancement(channels, spec.feature_channels, **made)
        else:
            parameters = 3 * (spec.feature_channels * channels + channels)
            self.haze = SelfAttention(channels, parameters, spec.heads, **made)
        self.branches = nnx.List([GatedBranch(channels, **made) for _ in range(spec.branches)])

    def __call__(
        self,
        f: Float[Array, "b h w c"],
        h_content: Float[Array, "b m n d"],
        h_haze: Float[Array, "b m n d"],
        *,
        gate: None = None,
        window: Window | Float[Array, "b 4"] = WHOLE,
    ) -> tuple[Float[Array, "b h w c"], None]:
        """(F_o, None): no gate depends on F, so none is returned and none can be passed."""
        f = self.content(f, h_content)
        f = self.haze(f, h_haze) if isinstance(self.haze, SelfAttention) else self.haze(f, h_haze, window)
        for branch in self.branches:
            f = branch(f)
        return f, None


class DiffLI2DPlus(DiffLI2D):
    """`DiffLI2D` with other blocks and borders. Its gates are always empty.

    `window` may be an array (B,4), one window per image.
    """

    def __init__(self, spec: PlusSpec, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.spec = spec
        self.dtype = dtype
        widths, inner = spec.widths, tuple(reversed(spec.widths[:-1]))
        made = {"dtype": dtype, "rngs": rngs}
        self.stem = PatchStem(spec.patch, 3, widths[0], **made)
        self.encoder = nnx.List([PlusBlock(c, spec, **made) for c in widths])
        self.down = nnx.List([Conv3x3(c, c // 2, use_bias=False, **made) for c in widths[:-1]])
        self.up = nnx.List([Up3x3(2 * c, c, **made) for c in inner])
        self.skip = nnx.List([nnx.Linear(2 * c, c, **made) for c in inner])
        self.decoder = nnx.List([PlusBlock(c, spec, **made) for c in inner])
        outputs = 3 * spec.patch**2 * (2 if spec.head == "affine" else 1)
        self.head = Conv3x3(widths[0], outputs, kernel_init=nnx.initializers.zeros, **made)

    def _restored(self, hazy: jax.Array, maps: jax.Array) -> jax.Array:
        maps = pixel_shuffle(maps, self.spec.patch)
        if self.spec.head == "sum":
            return super()._restored(hazy, maps)
        slope, offset = jnp.split(maps, 2, axis=-1)
        return hazy + slope * hazy + offset


def _repeat_border(x: jax.Array) -> jax.Array:
    # By concatenation: the gradient of jnp.pad's mode "edge" takes ten times as long on a CPU.
    x = jnp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    return jnp.concatenate([x[:, :, :1], x, x[:, :, -1:]], 2)
