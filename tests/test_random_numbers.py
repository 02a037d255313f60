"""Random numbers must not depend on `JAX_ENABLE_X64`: runs, restored images and samples stay the same."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import difflid_jax
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.release import release_features

# Where the dtype stands among the positional arguments.
_DRAWS = {"normal": 2, "uniform": 2, "randint": 4, "truncated_normal": 4, "gumbel": 2, "exponential": 2}


def test_every_draw_names_its_dtype():
    """Without one it is the default dtype, which x64 changes, and with it the bits that are drawn."""
    found = 0
    for path in Path(difflid_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("jax.random."):
                continue
            position = _DRAWS.get(node.func.attr)
            if position is not None:
                found += 1
                named = len(node.args) > position or any(word.arg == "dtype" for word in node.keywords)
                assert named, f"{path}:{node.lineno}: {ast.unparse(node)}"
    assert found >= 6


def test_features_are_the_same_with_x64(drawn):
    spec = UNetSpec(32, 32, 1, (), (1, 1), num_head_channels=16)
    unet = drawn(lambda: UNet(spec, part="all", rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    schedule = Schedule.named("linear", 1000)

    @jax.jit
    def features():
        key = jax.random.key(3)
        return (
            *h_space(unet, schedule, jnp.asarray(x), key, HSpaceSpec()),
            *release_features(unet, schedule, jnp.asarray(x), key),
        )

    expected = features()
    with jax.enable_x64(True):
        found = features()
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
