"""The convolutions of AlexNet, which LPIPS uses.

Source: Krizhevsky 2014; layers as torchvision's `alexnet`.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float


class AlexNet(nnx.Module):
    """Five convolutions with ReLU; max pooling before the second and the third."""

    def __init__(self, *, precision: jax.lax.PrecisionLike = None, rngs: nnx.Rngs) -> None:
        def conv(channels: int, out: int, size: int, stride: int, pad: int) -> nnx.Conv:
            return nnx.Conv(
                channels, out, (size, size), strides=stride, padding=pad, precision=precision, rngs=rngs
            )

        self.convs = nnx.List(
            [
                conv(3, 64, 11, 4, 2),
                conv(64, 192, 5, 1, 2),
                conv(192, 384, 3, 1, 1),
                conv(384, 256, 3, 1, 1),
                conv(256, 256, 3, 1, 1),
            ]
        )

    def stages(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """The five activations for images on ImageNet's scale, with sides of at least 31 pixels."""
        activations = []
        for i, conv in enumerate(self.convs):
            if i in (1, 2):
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
            x = nnx.relu(conv(x))
            activations.append(x)
        return activations
