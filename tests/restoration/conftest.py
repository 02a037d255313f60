"""A small restorer with random weights, saved as training saves one."""

import math

import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.restoration.restorer import load_restorer
from difflid_jax.weights import store

PRIOR = UNetSpec(64, 32, 1, (), (1,) * 6, num_head_channels=16)


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    store.save(
        folder, "unet", store.tensors_of(UNet(PRIOR, part="encoder", rngs=nnx.Rngs(1))), PRIOR.to_dict()
    )
    return folder


@pytest.fixture(scope="session")
def restorer_folder(tmp_path_factory, prior_folder):
    """Features of 32×32 px each, three levels; it changes a picture visibly (about ±0.2 of [0,1])."""
    spec = NetworkSpec(widths=(4, 8, 16), feature_channels=32, heads=2)
    shapes = store.shapes_of(nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    tensors = {
        # An untrained network is the identity: every kernel is drawn, so that all of it matters.
        name: rng.normal(0, 0.1 if len(shape) == 1 else math.prod(shape[:-1]) ** -0.5, shape).astype("f")
        for name, shape in shapes.items()
    }
    tensors["head.kernel"] *= 0.2
    folder = tmp_path_factory.mktemp("restorer")
    store.save(
        folder,
        "restorer",
        tensors,
        spec.to_dict(),
        prior=str(prior_folder),
        prior_sha256=store.read(prior_folder, "unet").sha256,
        features=HSpaceSpec().to_dict(),
        noise_seed=0,
    )
    return folder


@pytest.fixture(scope="session")
def restorer(restorer_folder):
    """One for all tests, so that its programs (here mostly of 64×64 px) are compiled once."""
    return load_restorer(restorer_folder)
