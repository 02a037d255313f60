"""Haze-aware enhancement (paper Sec. 4.2, Eqs. 7–8): the h-space at t₂ modulates pixels, then channels.

γ = W_γ h,  β = W_β h, resized to F'
F'_m = γ ⊙ F' + β                                Eq. 7
F_o  = σ(W_L · AvgPool(F'_m)) ⊙ F'_m + F'        Eq. 8
"""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from difflid_jax.layers.cpu import on_cpu
from difflid_jax.layers.cpu.modulation import haze_aware_enhancement
from difflid_jax.layers.resize import WHOLE, Window, average, enlarge


class HazeAwareEnhancement(nnx.Module):
    """F' (B,H,W,C), h (B,M,N,C') → F_o (B,H,W,C). W_γ and W_β are 1×1 convolutions, W_L a linear layer."""

    def __init__(self, channels: int, feature_channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        # Zero at the start: the block then returns F'. Seven products in a row would otherwise explode.
        zero = nnx.initializers.zeros
        self.scale = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.shift = nnx.Linear(feature_channels, channels, kernel_init=zero, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)

    @on_cpu(haze_aware_enhancement)
    def __call__(
        self,
        f: Float[Array, "b h w c"],
        h: Float[Array, "b m n d"],
        *,
        gate: Float[Array, "b 1 1 c"] | None = None,
        window: Window = WHOLE,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b 1 1 c"]]:
        """(F_o, the gate σ(W_L · AvgPool(F'_m))).

        `window`: the part of h's image that f covers. Anything beyond the image is padding: it is modulated
        like the image's edge and not pooled. `gate` replaces the one pooled from this f (tiles).
        """
        gamma, beta = (enlarge(x, f.shape[1:3], window) for x in (self.scale(h), self.shift(h)))
        f_m = gamma * f + beta
        if gate is None:
            gate = nnx.sigmoid(self.gate(average(f_m, window)))
        return gate * f_m + f, gate
