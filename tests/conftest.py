"""For all tests: how JAX compiles, shared compiled programs, reference values, and small random models."""

import math
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.weights import store

# Most of a test's time is compilation: its programs are small and run once or twice, most of them in several
# processes. The programs that tests start inherit all settings.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Share compiled programs between the tests and workers of a session, unless a cache is configured."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        config.difflid_cache = tempfile.mkdtemp(prefix="difflid_jax_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.difflid_cache  # xdist's workers inherit it
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs",
        float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
    )


# Files with few but long tests: a worker that began with one of them at the end would keep the other waiting.
LONG = (
    "test_processes.py",
    "test_train.py",
    "test_parallel.py",
    "test_unchanged.py",
    "test_pretrain.py",
    "test_export.py",
    "test_openai_ddpm.py",
    "test_difflid.py",
    "test_reach.py",
    "test_study.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with many tests; the Makefile keeps xdist from reordering them."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -tests[item.path], str(item.path)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "difflid_cache"):
        shutil.rmtree(config.difflid_cache, ignore_errors=True)


@pytest.fixture
def as_at_run_time() -> Iterator[None]:
    """Annotations are not checked: a user's value of a wrong type must meet our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory `shared` next to the repository (photographs, large reference values)."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the directory ../shared next to the repository")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Reference values that are too large to commit."""
    return shared / "golden"


@pytest.fixture(scope="session")
def named_draw() -> Callable[..., np.ndarray]:
    """Random weights that any framework can reproduce from a PyTorch parameter's name and shape."""

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
    """Modules with random non-zero parameters; many times faster than their own initializers."""

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
    """A network of three levels on features of 32×32 px each; it changes an image by about ±0.2 of [0,1]."""
    spec = NetworkSpec(widths=(4, 8, 16), feature_channels=32, heads=2)
    shapes = store.shapes_of(nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    tensors = {
        # An untrained network is the identity; with every kernel drawn, each part of it matters.
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
    """One restorer for all tests, so that its programs (mostly for 64×64 px) are compiled once."""
    return load_restorer(restorer_folder)
