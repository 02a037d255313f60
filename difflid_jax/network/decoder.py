"""The decoder D_t of Eq. 5 (paper Sec. 4.1, Fig. 2), which maps the h-space of a clean image back to it.

    h ─ 1×1 ─ [nearest ×2, 3×3, SiLU] per stage ─ 3×3 ─ image

The paper describes no architecture. This one halves its channels at every stage, down to 16.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.weights import schema

_FEWEST_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class DecoderSpec(schema.JsonSpec):
    """Architecture: channels of h, `width` after the 1×1, and stages; an image side is 2^stages times h's."""

    SECTION = "decoder"

    feature_channels: int
    stages: int
    width: int = 128

    def __post_init__(self):
        self.check_fields(feature_channels=(1, 65536), stages=(0, 10), width=(1, 8192))


class Decoder(nnx.Module):
    """D_t: h (B,H',W',C) → image (B,H,W,3), float32, about in [-1,1]."""

    def __init__(self, spec: DecoderSpec, *, rngs: nnx.Rngs):
        self.spec = spec
        least = min(spec.width, _FEWEST_CHANNELS)
        widths = [max(spec.width >> i, least) for i in range(spec.stages + 1)]
        self.enter = nnx.Conv(spec.feature_channels, spec.width, (1, 1), rngs=rngs)
        pairs = itertools.pairwise(widths)
        self.stages = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in pairs])
        self.leave = nnx.Conv(widths[-1], 3, (3, 3), rngs=rngs)

    def __call__(self, h: Float[Array, "b rows columns c"]) -> Float[Array, "b h w 3"]:
        x = self.enter(h.astype(jnp.float32))
        for conv in self.stages:
            x = jax.nn.silu(conv(x.repeat(2, 1).repeat(2, 2)))
        return self.leave(x)
