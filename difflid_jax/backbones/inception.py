"""Inception-v3 for the FID: the network of 2015-12-05, up to its last average pooling (2048 channels).

Source: pytorch-fid 0.3.0, `inception.py`; its file pt_inception-2015-12-05-6726825d.pth holds the weights
(`python -m convert_weights.perceptual`), and the modules have its names. Unlike in torchvision's Inception,
the average pools exclude the padding from the mean, and the last block has a maximum pool.
"""

import os
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from difflid_jax.compiled import bounded_jit
from difflid_jax.weights import store

SIDE = 299
CHANNELS = 2048


def load_inception(name_or_folder: str | os.PathLike) -> "Inception":
    """The feature extractor with the weights of a folder of kind 'inception'.

    Raises FileNotFoundError if there is none, ValueError if the weights do not fit.
    """
    weights = store.read(name_or_folder, "inception")
    network = nnx.eval_shape(lambda: InceptionNetwork(rngs=nnx.Rngs(0)))
    store.fill(network, weights.tensors, where=str(weights.path))
    return Inception(network)


class Inception:
    """`features = inception(images)`: (B,H,W,3) floats in [0,1], of any size → (B,2048) float32.

    Only the resizing is compiled for each image size; the network is compiled for each B.
    """

    def __init__(self, network: "InceptionNetwork") -> None:
        self._graph, self._state = nnx.split(network)

    def __call__(self, images: ArrayLike) -> Float[Array, "b 2048"]:
        """Raises ValueError for arrays of another kind or shape."""
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"Inception takes RGB images (B, H, W, 3), floats in [0, 1]; "
                f"found {images.dtype} of shape {images.shape}"
            )
        resized = resize_bilinear(images.astype(jnp.float32), SIDE, SIDE)
        return _features(self._graph, self._state, 2.0 * resized - 1.0)


@partial(jax.jit, static_argnums=0)
def _features(graph: nnx.GraphDef, state: nnx.State, images: Array) -> Float[Array, "b 2048"]:
    return nnx.merge(graph, state)(images)


@partial(bounded_jit, static_argnums=(1, 2))
def resize_bilinear(images: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b h2 w2 c"]:
    """Resize to height × width, as PyTorch's bilinear `interpolate` with align_corners=False.

    Pixel centres are kept; shrinking is not anti-aliased.
    """
    shape = (images.shape[0], height, width, images.shape[3])
    return jax.image.resize(images, shape, "bilinear", antialias=False)


class InceptionNetwork(nnx.Module):
    """The network itself, on images in [-1,1]."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.Conv2d_1a_3x3 = ConvNormRelu(3, 32, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, (3, 3), padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, (3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80, (1, 1), rngs=rngs)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, (3, 3), padding="VALID", rngs=rngs)
        self.Mixed_5b = BlockA(192, 32, rngs=rngs)
        self.Mixed_5c = BlockA(256, 64, rngs=rngs)
        self.Mixed_5d = BlockA(288, 64, rngs=rngs)
        self.Mixed_6a = BlockB(288, rngs=rngs)
        self.Mixed_6b = BlockC(768, 128, rngs=rngs)
        self.Mixed_6c = BlockC(768, 160, rngs=rngs)
        self.Mixed_6d = BlockC(768, 160, rngs=rngs)
        self.Mixed_6e = BlockC(768, 192, rngs=rngs)
        self.Mixed_7a = BlockD(768, rngs=rngs)
        self.Mixed_7b = BlockE(1280, _average_pool, rngs=rngs)
        self.Mixed_7c = BlockE(2048, _max_pool, rngs=rngs)

    def __call__(self, x: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _halve(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = _halve(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return jnp.mean(x, axis=(1, 2))


class ConvNormRelu(nnx.Module):
    """Convolution without bias, batch normalization by the stored statistics, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        *,
        strides: int = 1,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = nnx.Conv(
            in_channels,
            out_channels,
            kernel,
            strides=strides,
            padding=padding,
            use_bias=False,
            precision="highest",
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(out_channels, epsilon=1e-3, use_running_average=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return nnx.relu(self.bn(self.conv(x)))


class BlockA(nnx.Module):
    """35×35: 1×1, 5×5, two 3×3, pool."""

    def __init__(self, channels: int, pool_channels: int, *, rngs: nnx.Rngs) -> None:
        self.branch1x1 = ConvNormRelu(channels, 64, (1, 1), rngs=rngs)
        self.branch5x5_1 = ConvNormRelu(channels, 48, (1, 1), rngs=rngs)
        self.branch5x5_2 = ConvNormRelu(48, 64, (5, 5), rngs=rngs)
        self.branch3x3dbl_1 = ConvNormRelu(channels, 64, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, (3, 3), rngs=rngs)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, (3, 3), rngs=rngs)
        self.branch_pool = ConvNormRelu(channels, pool_channels, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return _join(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average_pool(x)),
        )


class BlockB(nnx.Module):
    """35×35 → 17×17."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.branch3x3 = ConvNormRelu(channels, 384, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.branch3x3dbl_1 = ConvNormRelu(channels, 64, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, (3, 3), rngs=rngs)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, (3, 3), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return _join(
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            _halve(x),
        )


class BlockC(nnx.Module):
    """17×17: 1×1, a factorized 7×7, two of them, pool."""

    def __init__(self, channels: int, inner: int, *, rngs: nnx.Rngs) -> None:
        row, column = (1, 7), (7, 1)
        self.branch1x1 = ConvNormRelu(channels, 192, (1, 1), rngs=rngs)
        self.branch7x7_1 = ConvNormRelu(channels, inner, (1, 1), rngs=rngs)
        self.branch7x7_2 = ConvNormRelu(inner, inner, row, rngs=rngs)
        self.branch7x7_3 = ConvNormRelu(inner, 192, column, rngs=rngs)
        self.branch7x7dbl_1 = ConvNormRelu(channels, inner, (1, 1), rngs=rngs)
        self.branch7x7dbl_2 = ConvNormRelu(inner, inner, column, rngs=rngs)
        self.branch7x7dbl_3 = ConvNormRelu(inner, inner, row, rngs=rngs)
        self.branch7x7dbl_4 = ConvNormRelu(inner, inner, column, rngs=rngs)
        self.branch7x7dbl_5 = ConvNormRelu(inner, 192, row, rngs=rngs)
        self.branch_pool = ConvNormRelu(channels, 192, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return _join(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average_pool(x)),
        )


class BlockD(nnx.Module):
    """17×17 → 8×8."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.branch3x3_1 = ConvNormRelu(channels, 192, (1, 1), rngs=rngs)
        self.branch3x3_2 = ConvNormRelu(192, 320, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.branch7x7x3_1 = ConvNormRelu(channels, 192, (1, 1), rngs=rngs)
        self.branch7x7x3_2 = ConvNormRelu(192, 192, (1, 7), rngs=rngs)
        self.branch7x7x3_3 = ConvNormRelu(192, 192, (7, 1), rngs=rngs)
        self.branch7x7x3_4 = ConvNormRelu(192, 192, (3, 3), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return _join(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(wide), _halve(x))


class BlockE(nnx.Module):
    """8×8: 1×1, two 3×3 split into 1×3 and 3×1, and the given pool."""

    def __init__(self, channels: int, pool: Callable, *, rngs: nnx.Rngs) -> None:
        row, column = (1, 3), (3, 1)
        self.pool = pool
        self.branch1x1 = ConvNormRelu(channels, 320, (1, 1), rngs=rngs)
        self.branch3x3_1 = ConvNormRelu(channels, 384, (1, 1), rngs=rngs)
        self.branch3x3_2a = ConvNormRelu(384, 384, row, rngs=rngs)
        self.branch3x3_2b = ConvNormRelu(384, 384, column, rngs=rngs)
        self.branch3x3dbl_1 = ConvNormRelu(channels, 448, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNormRelu(448, 384, (3, 3), rngs=rngs)
        self.branch3x3dbl_3a = ConvNormRelu(384, 384, row, rngs=rngs)
        self.branch3x3dbl_3b = ConvNormRelu(384, 384, column, rngs=rngs)
        self.branch_pool = ConvNormRelu(channels, 192, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _join(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )


def _join(*branches: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
    return jnp.concatenate(branches, axis=-1)


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def _max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
