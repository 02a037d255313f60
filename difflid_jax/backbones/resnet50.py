"""ResNet-50 in place of the h-space (paper, Table 3).

The paper does not name the layer. We take `layer4` of torchvision's network, the last one before its average
pooling: 2048 channels on the grid of the h-space, 1/32. A classifier has no timestep, so content and haze
features are the same map.

Source: He et al. 2016; layers and names as torchvision's `resnet50` (the 3×3 has the stride).
"""

import os

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from difflid_jax.backbones.imagenet import normalize, require_stride
from difflid_jax.weights import store

BLOCKS = (3, 4, 6, 3)
EXPANSION = 4


def load_resnet50(name_or_folder: str | os.PathLike, *, dtype: jnp.dtype = jnp.float32) -> "ResNet50":
    """ResNet-50 with the weights of a folder of kind 'resnet50', computing in `dtype`.

    `python -m convert_weights.perceptual` writes such a folder from torchvision's file. Raises
    FileNotFoundError if there is none, ValueError if the weights do not fit.
    """
    weights = store.read(name_or_folder, "resnet50")
    network = nnx.eval_shape(lambda: ResNet50(dtype=dtype, rngs=nnx.Rngs(0)))
    store.fill(network, weights.tensors, where=str(weights.path))
    return network


class ResNet50(nnx.Module):
    """The frozen map from images in [-1,1] to content and haze features, at 1/32 of the size."""

    feature_channels = 2048

    def __init__(self, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(3, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(64, dtype=dtype, rngs=rngs)
        channels = 64
        for i, blocks in enumerate(BLOCKS):
            width = 64 * 2**i
            layer = nnx.List([])
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(Bottleneck(channels, width, stride=stride, dtype=dtype, rngs=rngs))
                channels = EXPANSION * width
            setattr(self, f"layer{i + 1}", layer)

    def __call__(
        self, x: Float[Array, "b h w 3"], key: Array | None = None
    ) -> tuple[Float[Array, "b h2 w2 2048"], Float[Array, "b h2 w2 2048"]]:
        """The same map twice; `key` is not used. Raises ValueError for sides that are not multiples of 32."""
        require_stride(x)
        features = self.layers(normalize(x))[-1]
        return features, features

    def layers(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """The outputs of layer1 … layer4 for images on ImageNet's scale, at 1/4, 1/8, 1/16, 1/32."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
            outputs.append(x)
        return outputs


class Bottleneck(nnx.Module):
    """1×1 to `width`, 3×3, 1×1 to 4·width, added to the input or to its 1×1 projection."""

    def __init__(self, channels: int, width: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        out = EXPANSION * width
        self.conv1 = _conv(channels, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = _norm(width, dtype=dtype, rngs=rngs)
        self.conv2 = _conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = _norm(width, dtype=dtype, rngs=rngs)
        self.conv3 = _conv(width, out, 1, dtype=dtype, rngs=rngs)
        self.bn3 = _norm(out, dtype=dtype, rngs=rngs)
        if channels != out:
            self.downsample = nnx.List(
                [
                    _conv(channels, out, 1, stride=stride, dtype=dtype, rngs=rngs),
                    _norm(out, dtype=dtype, rngs=rngs),
                ]
            )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shortcut = x
        if hasattr(self, "downsample"):
            conv, norm = self.downsample
            shortcut = norm(conv(x))
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return nnx.relu(self.bn3(self.conv3(x)) + shortcut)


def _conv(
    channels: int, out: int, size: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    # PyTorch pads all sides alike; 'SAME' would pad the end more if the stride is 2.
    return nnx.Conv(
        channels,
        out,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


def _norm(channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, epsilon=1e-5, use_running_average=True, dtype=dtype, rngs=rngs)
