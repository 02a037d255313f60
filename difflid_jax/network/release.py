"""The network of the authors' PyTorch release, which is not the paper's, to convert and run its checkpoints.

Reference: DiffLI2D, CIM and HAE in models/net.py of aaaasan111/difflid (754,633 parameters). It differs from
the paper (network/difflid.py) in that

- its two feature maps are the diffusion U-Net's output, 6 channels at the image's size (features of
  kind "release"), so that CIM attends from every position to every pixel;
- CIM normalizes the inputs of query, key and value with BatchNorm;
- HAE max-pools the map to F's size and predicts γ and β with 3×3 convolutions;
- all levels have the same width; average pooling goes down, 2×2 transposed convolutions go up.

In HAE the release enlarges by nearest ×2 and then applies a 1×1 convolution of stride 2. That equals a plain
1×1 convolution.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.attention import attention
from difflid_jax.layers.resize import WHOLE, Window, resize
from difflid_jax.weights import schema

LEVELS = 4


@dataclasses.dataclass(frozen=True)
class ReleaseSpec(schema.JsonSpec):
    """Architecture: the channels of every level, of the feature maps, and CIM's heads."""

    SECTION = "network"
    NETWORK = "release"

    width: int = 64
    feature_channels: int = 6
    heads: int = 4

    def __post_init__(self):
        self.check_fields(width=(1, 8192), feature_channels=(1, 4096), heads=(1, 256))
        if self.width % self.heads:
            raise ValueError(f"the release's width {self.width} must be divisible by its {self.heads} heads")

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this."""
        return 2 ** (LEVELS - 1)

    @property
    def reach(self) -> int:
        """How far the convolutions see from a pixel, in pixels."""
        return 4 * self.stride

    @property
    def can_tile(self) -> bool:
        """Whether the network restores parts of an image, given features and gates of the whole."""
        return True


class ReleasedDiffLI2D(nnx.Module):
    """hazy (B,H,W,3) in [-1,1], h_content and h_haze (B,H',W',C') → (restored (B,H,W,3), {"gates": …}).

    H and W are multiples of 8. The release has H' = H and W' = W; HAE resizes smaller maps (features of a
    large image at a working size) to H×W.

    `gates`: the seven channel gates (B,1,1,C) to use instead of those pooled from this input. `window`: the
    part (top, left, bottom, right), in fractions, of the feature maps' image that `hazy` covers (tiles).
    `train`: BatchNorm uses the statistics of the batch and updates the running ones (with the biased
    variance; PyTorch uses the unbiased one, a relative difference of 1/(B·H·W)).
    """

    def __init__(self, spec: ReleaseSpec, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.spec = spec
        width, made = spec.width, {"dtype": dtype, "rngs": rngs}
        self.stem = nnx.Conv(3, width, (3, 3), padding=1, **made)
        self.down_blocks = nnx.List([Block(spec, **made) for _ in range(LEVELS - 1)])
        self.bottom_block = Block(spec, **made)
        self.up = nnx.List([DoubleSize(width, **made) for _ in range(LEVELS - 1)])
        self.merge = nnx.List([nnx.Conv(2 * width, width, (1, 1), **made) for _ in range(LEVELS - 1)])
        self.up_blocks = nnx.List([Block(spec, **made) for _ in range(LEVELS - 1)])
        self.head = nnx.Conv(width, 3, (3, 3), padding=1, **made)

    def __call__(
        self,
        hazy: Float[Array, "b h w 3"],
        h_content: Float[Array, "b m n d"],
        h_haze: Float[Array, "b m n d"],
        *,
        gates: Sequence[Float[Array, "b 1 1 c"]] | None = None,
        window: Window = WHOLE,
        train: bool = False,
    ) -> tuple[Float[Array, "b h w 3"], dict[str, tuple[Float[Array, "b 1 1 c"], ...]]]:
        rows, columns = hazy.shape[1:3]
        if rows % 8 or columns % 8:
            raise ValueError(f"the network needs sides that are multiples of 8, found {rows}×{columns}")
        if window is not WHOLE or h_haze.shape[1:3] != (rows, columns):
            h_haze = resize(h_haze, (rows, columns), window)
        given, used = iter(gates or (None,) * (2 * LEVELS - 1)), []

        def run(block: Block, x: jax.Array) -> jax.Array:
            x, gate = block(x, h_content, h_haze, gate=next(given), train=train)
            used.append(gate)
            return x

        x, skips = self.stem(hazy), []
        for block in self.down_blocks:
            x = run(block, x)
            skips.append(x)
            x = nnx.avg_pool(x, (2, 2), (2, 2))
        x = run(self.bottom_block, x)
        for up, merge, block in zip(self.up, self.merge, self.up_blocks, strict=True):
            x = jnp.concatenate([up(x), skips.pop()], axis=-1)
            x = run(block, merge(x))
        return hazy + self.head(x), {"gates": tuple(used)}


class Block(nnx.Module):
    """CIM, then HAE."""

    def __init__(self, spec: ReleaseSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.cim = CIM(spec, dtype=dtype, rngs=rngs)
        self.hae = HAE(spec, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        f: Float[Array, "b h w c"],
        h_content: Float[Array, "b m n d"],
        h_haze: Float[Array, "b k l d"],
        *,
        gate: Float[Array, "b 1 1 c"] | None,
        train: bool,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 c"]]:
        return self.hae(self.cim(f, h_content, train=train), h_haze, gate=gate)


class CIM(nnx.Module):
    """f (B,H,W,C) + W_O · softmax(Q Kᵀ/√d) V with Q from f and K, V from h (B,H',W',C'), each normalized."""

    def __init__(self, spec: ReleaseSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        made = {"dtype": dtype, "rngs": rngs}

        def pointwise(inputs: int) -> nnx.Conv:
            return nnx.Conv(inputs, spec.width, (1, 1), **made)

        def norm() -> nnx.BatchNorm:
            # Two passes over the batch for its variance: E[x²] − E[x]² loses digits in float32.
            return nnx.BatchNorm(spec.width, momentum=0.9, epsilon=1e-5, use_fast_variance=False, **made)

        self.heads = spec.heads
        self.align = pointwise(spec.feature_channels)
        self.norm_q, self.norm_k, self.norm_v = norm(), norm(), norm()
        self.to_q, self.to_k, self.to_v = (pointwise(spec.width) for _ in range(3))
        self.to_out = pointwise(spec.width)

    def __call__(
        self, f: Float[Array, "b h w c"], h: Float[Array, "b m n d"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        h = self.align(h)

        q = self.to_q(self.norm_q(f, use_running_average=not train))
        k = self.to_k(self.norm_k(h, use_running_average=not train))
        v = self.to_v(self.norm_v(h, use_running_average=not train))
        return f + self.to_out(attention(q, k, v, heads=self.heads))


class HAE(nnx.Module):
    """γ ⊙ f + β from h max-pooled to f's size, then the channel gate of Eq. 8: returns (output, gate)."""

    def __init__(self, spec: ReleaseSpec, *, dtype: DTypeLike, rngs: nnx.Rngs):
        made, inputs, width = {"dtype": dtype, "rngs": rngs}, spec.feature_channels, spec.width

        def predictor() -> tuple[nnx.Conv, nnx.Conv]:
            return nnx.Conv(inputs, width, (1, 1), **made), nnx.Conv(width, width, (3, 3), padding=1, **made)

        self.smooth = nnx.Conv(inputs, inputs, (3, 3), padding=1, **made)
        self.gamma_in, self.gamma_out = predictor()
        self.beta_in, self.beta_out = predictor()
        self.gate = nnx.Linear(width, width, **made)

    def __call__(
        self, f: Float[Array, "b h w c"], h: Float[Array, "b m n d"], *, gate: Float[Array, "b 1 1 c"] | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 c"]]:
        while h.shape[1] > f.shape[1]:
            h = nnx.max_pool(h, (2, 2), (2, 2))
        h = self.smooth(h)
        modulated = self.gamma_out(self.gamma_in(h)) * f + self.beta_out(self.beta_in(h))
        if gate is None:
            pooled = jnp.mean(modulated.astype(jnp.float32), axis=(1, 2), keepdims=True)
            gate = nnx.sigmoid(self.gate(pooled))
        return modulated * gate + f, gate


class DoubleSize(nnx.Module):
    """Transposed 2×2 convolution of stride 2: every position becomes four, (B,H,W,C) → (B,2H,2W,C)."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.spread = nnx.LinearGeneral(width, (2, 2, width), use_bias=False, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        batch, rows, columns, width = x.shape
        x = self.spread(x).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * rows, 2 * columns, width) + self.bias[...].astype(x.dtype)
