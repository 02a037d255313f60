"""Fixtures for all tests: the reference values and real pictures that lie beside the repository, if any."""

import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.weights import store

# Most of a test is compiling: its programs are small, and run once or twice. Its processes compile so, too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository (real pictures, large reference values)."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Reference values that are too large to commit."""
    return shared / "golden"


@pytest.fixture(scope="session")
def named_draw() -> Callable[..., np.ndarray]:
    """Random weights that any framework can draw again from a PyTorch parameter's name and shape."""

    def draw(name: str, shape: tuple[int, ...], seed: int = 0, gain: float = 1.0) -> np.ndarray:
        generator = np.random.default_rng(zlib.crc32(name.encode()) + seed)
        if len(shape) > 1:
            weights = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * gain
        elif name.endswith("running_var"):
            weights = 0.5 + generator.random(shape)
        elif name.endswith("weight"):
            weights = 1 + 0.1 * generator.standard_normal(shape)
        else:
            weights = 0.1 * generator.standard_normal(shape)
        return weights.astype(np.float32)

    return draw


@pytest.fixture(scope="session")
def drawn() -> Callable[..., nnx.Module]:
    """Modules with random parameters, none of them zero; many times faster than their own initialisers."""

    def draw(build: Callable[[], nnx.Module], seed: int = 0, scale: float = 0.1) -> nnx.Module:
        module = nnx.eval_shape(build)
        generator = np.random.default_rng(seed)
        shapes = store.shapes_of(module)
        tensors = {name: scale * generator.standard_normal(shape) for name, shape in sorted(shapes.items())}
        store.fill(module, tensors, where="drawn")
        return module

    return draw


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
