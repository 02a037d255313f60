"""URetinex-Net (Wu et al., CVPR 2022): Retinex decomposition by an optimization unfolded into a network.

I = P · Q is split into reflectance P and illumination Q by three alternating steps, each of a closed form
(Eqs. 9 and 10) and a learned prior (R for P, L for Q); a last network brightens L by a given ratio.

Source: test.py and network/ of AndersonYong/URetinex-Net; its weights store γ, λ and their steps. The
published scores take the ratio of each image from its normal-light ground truth (evaluate.py); `__call__`
uses the fixed ratio 5 of test.py, and `ratio` computes the other.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.baselines.layers import conv

ROUNDS = 3
GAMMA, GAMMA_STEP = 0.1, 0.05
LAMBDA, LAMBDA_STEP = 0.5, 0.05
RATIO = 5.0

Image = Float[Array, "b h w 3"]
Map = Float[Array, "b h w 1"]


class URetinexNet(nnx.Module):
    """Low-light images in [0,1] → restored reflectance × adjusted illumination."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.decompose_low = Decompose(rngs=rngs)
        self.decompose_high = Decompose(rngs=rngs)
        self.reflectance = Reflectance(rngs=rngs)
        self.illumination = Illumination(1, 5, 1, rngs=rngs)
        self.adjust = Illumination(2, 4, 5, rngs=rngs)

    def __call__(self, low: Image, ratio: float | Float[Array, ""] = RATIO) -> Image:
        r, l = self.unfold(low)
        return r * self.adjust(jnp.concatenate([l, jnp.full_like(l, ratio)], axis=-1))

    def unfold(self, low: Image) -> tuple[Image, Map]:
        """Reflectance and illumination of a low-light image."""
        p, q = self.decompose_low(low)
        r, l = self.reflectance(p, q), self.illumination(q)
        for step in range(1, ROUNDS):
            gamma, lam = GAMMA + GAMMA_STEP * step, LAMBDA + LAMBDA_STEP * step
            p = (low * q + gamma * r) / (gamma + q**2)
            q = ((low * p).sum(-1, keepdims=True) + lam * l) / ((p**2).sum(-1, keepdims=True) + lam)
            r, l = self.reflectance(p, q), self.illumination(q)
        return r, l

    def ratio(self, low: Image, normal: Image) -> Float[Array, ""]:
        """The ratio that evaluate.py takes from one image and its normal-light ground truth."""
        _, illumination = self.unfold(low)
        _, wanted = self.decompose_high(normal)
        return 1 / ((illumination / (wanted + 1e-4)).mean() + 1e-4)


class Decompose(nnx.Module):
    """The initialization: four 3×3 convolutions."""

    def __init__(self, *, rngs: nnx.Rngs):
        sizes = ((3, 32), (32, 32), (32, 32), (32, 4))
        self.convs = nnx.List([conv(inputs, outputs, 3, rngs=rngs) for inputs, outputs in sizes])

    def __call__(self, image: Image) -> tuple[Image, Map]:
        f = _chain(self.convs, image)
        return f[..., :3], f[..., 3:]


class Reflectance(nnx.Module):
    """The learned prior of the reflectance: channel attention, then a residual of six 3×3 convolutions."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.of_reflectance = conv(3, 32, 3, rngs=rngs)
        self.of_illumination = conv(1, 32, 3, rngs=rngs)
        self.squeeze = nnx.Linear(64, 4, use_bias=False, precision="highest", rngs=rngs)
        self.excite = nnx.Linear(4, 64, use_bias=False, precision="highest", rngs=rngs)
        self.convs = nnx.List([conv(64, 64, 3, rngs=rngs) for _ in range(5)])
        self.last = conv(64, 3, 3, rngs=rngs)

    def __call__(self, p: Image, q: Map) -> Image:
        f = jax.nn.relu(jnp.concatenate([self.of_reflectance(p), self.of_illumination(q)], axis=-1))
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(f.mean(axis=(1, 2))))))
        f = f * gate[:, None, None]
        for layer in self.convs:
            f = jax.nn.relu(layer(f))
        return p + self.last(f)


class Illumination(nnx.Module):
    """The prior of the illumination, and its adjustment: 5×5 convolutions of 32 channels."""

    def __init__(self, inputs: int, depth: int, last: int, *, rngs: nnx.Rngs):
        widths = [inputs] + [32] * (depth - 1)
        layers = [conv(a, b, 5, rngs=rngs) for a, b in itertools.pairwise(widths)]
        self.convs = nnx.List([*layers, conv(32, 1, last, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Map:
        return _chain(self.convs, x)


def _chain(convs: nnx.List, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    """Convolutions with leaky ReLUs between them and a ReLU at the end."""
    for layer in convs[:-1]:
        x = jax.nn.leaky_relu(layer(x), 0.2)
    return jax.nn.relu(convs[-1](x))
