"""How far a pixel's influence goes: what tiles must overlap by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec

SMALL = {"widths": (4, 8, 16), "feature_channels": 6, "heads": 2}


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (DiffLI2D, NetworkSpec(**SMALL)),
        (DiffLI2DPlus, PlusSpec(**SMALL, branches=2)),
        (DiffLI2DPlus, PlusSpec(**SMALL | {"widths": (4, 8)}, branches=2, patch=2, head="affine")),
    ],
)
def test_nothing_comes_from_beyond_the_reach(kind, spec, drawn):
    network = drawn(lambda: kind(spec, rngs=nnx.Rngs(0)), scale=0.5)
    rng = np.random.default_rng(0)
    width, at = 128, 61
    hazy = jnp.asarray(rng.uniform(-1, 1, (1, 8, width, 3)), jnp.float32)
    h = jnp.asarray(rng.normal(size=(1, 1, 4, 6)), jnp.float32)
    gates = jax.jit(lambda x: network(x, h, h)[1]["gates"])(hazy)

    @jax.jit
    def restore(x):
        return network(x, h, h, gates=gates)[0]

    changed = hazy.at[:, :, at].add(1)
    columns = np.flatnonzero(np.abs(restore(changed) - restore(hazy)).max((0, 1, 3)))
    distance = np.abs(columns - at).max()
    assert spec.reach / 2 < distance <= spec.reach
