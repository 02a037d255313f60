"""DiffLI²D's dehazing network (paper Sec. 4.2, Fig. 3b): seven blocks, each CIM then HAE, in a U-Net.

    stem 3×3 ─ block ─ down ─ block ─ down ─ block ─ down ─ block
                 │              │              │             │
    head 3×3 ─ block ── up ── block ── up ── block ─── up ───┘      restored = hazy + head

Down: 3×3 to half the channels, then pixel-unshuffle (twice the channels, half the size). Up: bilinear ×2,
then 3×3 to half the channels. Skips: concatenation, then 1×1. The paper states 8.63 M parameters and no
widths: 64, 128, 256, 512 with one block per position have 8,619,331 at 1024 feature channels.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.convolution import UpConv, convolve, convolve_joined
from difflid_jax.layers.resize import WHOLE, Window
from difflid_jax.network.cim import ContentIntegration
from difflid_jax.network.hae import HazeAwareEnhancement
from difflid_jax.network.self_attention import SelfAttention
from difflid_jax.weights import schema

CONTENT = ("cim", "self_attention")
HAZE = ("hae", "self_attention")

# Widths per level: the paper's, and narrower ones for small machines.
PRESETS: dict[str, tuple[int, ...]] = {
    "paper": (64, 128, 256, 512),
    "narrow": (32, 64, 128, 256),
    "slim": (16, 32, 64, 128),
}


@dataclasses.dataclass(frozen=True)
class NetworkSpec(schema.JsonSpec):
    """Architecture: `widths` per level, channels of the feature maps, and the two modules of a block.

    `content`: "cim" or "self_attention"; `haze`: "hae" or "self_attention" (the ablations of Table 2).
    """

    SECTION = "network"

    widths: tuple[int, ...] = PRESETS["paper"]
    feature_channels: int = 1024
    heads: int = 4
    content: str = "cim"
    haze: str = "hae"

    def __post_init__(self):
        self.check_fields(widths=(1, 8192), feature_channels=(1, 65536), heads=(1, 256))
        schema.check_choice("network.content", self.content, CONTENT)
        schema.check_choice("network.haze", self.haze, HAZE)
        if any(wide != 2 * narrow for narrow, wide in zip(self.widths, self.widths[1:], strict=False)):
            raise ValueError(f"network.widths: each must be twice the one before, found {self.widths}")
        if not self.widths or self.widths[0] % self.heads or self.widths[0] % 2:
            raise ValueError(
                f"network.widths: the first must be even and divisible by {self.heads} heads, "
                f"found {self.widths}"
            )

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this."""
        return 2 ** (len(self.widths) - 1)

    @property
    def reach(self) -> int:
        """How far the convolutions see from a pixel, in pixels: 30 px for four levels."""
        return 4 * self.stride

    @property
    def can_tile(self) -> bool:
        """Whether the network restores parts of an image, given features and gates of the whole."""
        return "self_attention" not in (self.content, self.haze)


def content_module(
    channels: int, spec: NetworkSpec, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> ContentIntegration | SelfAttention:
    """CIM, or self-attention with as many parameters."""
    c, f = channels, spec.feature_channels
    if spec.content == "cim":
        return ContentIntegration(c, f, spec.heads, dtype=dtype, rngs=rngs)
    return SelfAttention(c, f * c + c + 4 * (c * c + c), spec.heads, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """CIM, then HAE, or what replaces them in an ablation."""

    def __init__(self, channels: int, spec: NetworkSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        c, f = channels, spec.feature_channels
        self.content = content_module(c, spec, dtype=dtype, rngs=rngs)
        if spec.haze == "hae":
            self.haze = HazeAwareEnhancement(c, f, dtype=dtype, rngs=rngs)
        else:
            parameters = 2 * (f * c + c) + c * c + c
            self.haze = SelfAttention(c, parameters, spec.heads, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        f: Float[Array, "b h w c"],
        h_content: Float[Array, "b m n d"],
        h_haze: Float[Array, "b m n d"],
        *,
        gate: Float[Array, "b 1 1 c"] | None = None,
        window: Window = WHOLE,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 c"] | None]:
        """(F_o, the gate of Eq. 8, or None without HAE); `gate` and `window`: see HazeAwareEnhancement."""
        f = self.content(f, h_content)
        if isinstance(self.haze, SelfAttention):
            return self.haze(f, h_haze), None
        return self.haze(f, h_haze, gate=gate, window=window)


class DiffLI2D(nnx.Module):
    """Hazy image and two feature maps in, restored image out. Computes in `dtype`, parameters are float32."""

    def __init__(self, spec: NetworkSpec, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.spec = spec
        self.dtype = dtype
        made = {"dtype": dtype, "rngs": rngs}
        conv3 = partial(nnx.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=convolve, **made)
        conv1 = partial(nnx.Conv, kernel_size=(1, 1), conv_general_dilated=convolve_joined, **made)
        widths, inner = spec.widths, tuple(reversed(spec.widths[:-1]))
        self.stem = conv3(3, widths[0])
        self.encoder = nnx.List([Block(c, spec, **made) for c in widths])
        self.down = nnx.List([conv3(c, c // 2, use_bias=False) for c in widths[:-1]])
        self.up = nnx.List([UpConv(2 * c, c, (3, 3), padding=1, **made) for c in inner])
        self.skip = nnx.List([conv1(2 * c, c) for c in inner])
        self.decoder = nnx.List([Block(c, spec, **made) for c in inner])
        # Zero at the start: an untrained network returns its input.
        self.head = conv3(widths[0], 3, kernel_init=nnx.initializers.zeros)

    def __call__(
        self,
        hazy: Float[Array, "b h w 3"],
        h_content: Float[Array, "b m n _"],
        h_haze: Float[Array, "b m n _"],
        *,
        gates: Sequence[Float[Array, "b 1 1 _"]] | None = None,
        window: Window | Float[Array, "b 4"] = WHOLE,
    ) -> tuple[Float[Array, "b h w 3"], dict[str, tuple[Float[Array, "b 1 1 _"], ...]]]:
        """(restored, float32 and not clipped, {"gates": the channel gates of Eq. 8, one per block}).

        hazy in [-1,1], with sides that are multiples of `spec.stride`. `window` = (top, left, bottom, right)
        is the part of the image of h_* that `hazy` covers, in fractions of its sides (numbers or traced
        scalars); a part beyond 0 and 1 is padding, and Eq. 8 does not pool it. For a tile, `gates` are the
        gates of the whole image.

        Raises ValueError for a size or a number of channels that does not fit, and for tiles of the
        self-attention ablations, whose keys come from the input itself.
        """
        self._check(hazy, h_content, h_haze, gates)
        h_content, h_haze = h_content.astype(self.dtype), h_haze.astype(self.dtype)
        given, found = iter(gates or ()), []

        def run(block: nnx.Module, x: jax.Array) -> jax.Array:
            x, gate = block(x, h_content, h_haze, gate=next(given, None), window=window)
            if gate is not None:
                found.append(gate)
            return x

        x, skips = self.stem(hazy.astype(self.dtype)), []
        for block, down in zip(self.encoder[:-1], self.down, strict=True):
            x = run(block, x)
            skips.append(x)
            x = pixel_unshuffle(down(x))
        x = run(self.encoder[-1], x)
        for up, skip, block in zip(self.up, self.skip, self.decoder, strict=True):
            x = up(x)
            x = skip(jnp.concatenate([x, skips.pop()], axis=-1))
            x = run(block, x)
        restored = self._restored(hazy.astype(jnp.float32), self.head(x).astype(jnp.float32))
        return restored, {"gates": tuple(found)}

    def _restored(self, hazy: jax.Array, maps: jax.Array) -> jax.Array:
        """The restored image, from the hazy one and what the head gives."""
        return hazy + maps

    def _check(
        self, hazy: jax.Array, h_content: jax.Array, h_haze: jax.Array, gates: Sequence[jax.Array] | None
    ) -> None:
        rows, columns = hazy.shape[1:3]
        if rows % self.spec.stride or columns % self.spec.stride:
            raise ValueError(
                f"hazy: expected sides that are multiples of {self.spec.stride}, found {rows}×{columns}"
            )
        for name, h in (("h_content", h_content), ("h_haze", h_haze)):
            if h.shape[-1] != self.spec.feature_channels:
                raise ValueError(
                    f"{name}: expected {self.spec.feature_channels} channels, found {h.shape[-1]}"
                )
        if gates is not None and not self.spec.can_tile:
            raise ValueError("tiles: the self-attention ablations restore whole images only")


def pixel_unshuffle(x: Float[Array, "b h w c"], side: int = 2) -> Float[Array, "b h2 w2 d"]:
    """Blocks of side×side pixels as channels: (B,H,W,C) → (B,H/side,W/side,side²·C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // side, w // side, side * side * c)


def pixel_shuffle(x: Float[Array, "b h w c"], side: int = 2) -> Float[Array, "b h2 w2 d"]:
    """The inverse of `pixel_unshuffle`."""
    b, h, w, _ = x.shape
    x = x.reshape(b, h, w, side, side, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * side, w * side, -1)
