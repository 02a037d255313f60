"""RetinexNet (Wei et al., BMVC 2018): an image is reflectance times illumination; only the latter is relit.

The weights are those of an unofficial PyTorch version (aasharma90/RetinexNet_PyTorch, `model.py`), which
repeats the border where the authors' TensorFlow code pads with zeros. Neither denoises the reflectance.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.baselines.layers import conv, nearest, pad

WIDTH = 64


class RetinexNet(nnx.Module):
    """Decom-Net then Enhance-Net: low-light images in [0,1] → reflectance × relit illumination."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.decompose = Decompose(rngs=rngs)
        self.relight = Relight(rngs=rngs)

    def __call__(self, low: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        reflectance, illumination = self.decompose(low)
        return reflectance * self.relight(illumination, reflectance)


class Decompose(nnx.Module):
    """Decom-Net: 9×9, five 3×3 with ReLU, 3×3; reflectance and illumination through a sigmoid."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.first = conv(4, WIDTH, 9, padding="VALID", rngs=rngs)
        self.convs = nnx.List([conv(WIDTH, WIDTH, 3, padding="VALID", rngs=rngs) for _ in range(5)])
        self.last = conv(WIDTH, 4, 3, padding="VALID", rngs=rngs)

    def __call__(
        self, low: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 1"]]:
        f = _edge(self.first, jnp.concatenate([low.max(axis=-1, keepdims=True), low], axis=-1))
        for layer in self.convs:
            f = jax.nn.relu(_edge(layer, f))
        f = jax.nn.sigmoid(_edge(self.last, f))
        return f[..., :3], f[..., 3:]


class Relight(nnx.Module):
    """Enhance-Net: three steps down, three up with nearest-neighbour resizing, multi-scale fusion."""

    def __init__(self, *, rngs: nnx.Rngs):
        def layer(inputs: int, *, stride: int = 1) -> nnx.Conv:
            return conv(inputs, WIDTH, 3, stride=stride, padding="VALID", rngs=rngs)

        self.first = layer(4)
        self.down = nnx.List([layer(WIDTH, stride=2) for _ in range(3)])
        self.up = nnx.List([layer(2 * WIDTH) for _ in range(3)])
        self.fusion = conv(3 * WIDTH, WIDTH, 1, rngs=rngs)
        self.last = conv(WIDTH, 1, 3, padding="VALID", rngs=rngs)

    def __call__(
        self, illumination: Float[Array, "b h w 1"], reflectance: Float[Array, "b h w 3"]
    ) -> Float[Array, "b h w 1"]:
        levels = [_edge(self.first, jnp.concatenate([reflectance, illumination], axis=-1))]
        for layer in self.down:
            levels.append(jax.nn.relu(_edge(layer, levels[-1])))
        f, decoded = levels.pop(), []
        for layer in self.up:
            skip = levels.pop()
            f = jnp.concatenate([nearest(f, skip.shape[1:3]), skip], axis=-1)
            f = jax.nn.relu(_edge(layer, f))
            decoded.append(f)
        size = reflectance.shape[1:3]
        fused = jnp.concatenate([nearest(f, size) for f in decoded], axis=-1)
        # The reference pads its 1×1 convolution, and the last 3×3 takes that border away again.
        return self.last(pad(self.fusion(fused), 1, 1, "edge"))


def _edge(layer: nnx.Conv, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
    """The convolution of x with its border repeated."""
    border = layer.kernel_size[0] // 2
    return layer(pad(x, border, border, "edge"))
