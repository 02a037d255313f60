"""Programs are kept for the sizes used last, and no others."""

import gc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.compiled import bounded_jit


def test_as_many_programs_are_kept_as_asked_and_the_oldest_goes():
    traced = []

    def scaled(x, factor, by):
        traced.append((x.shape, by))
        return x * factor + by

    run = bounded_jit(scaled, static_argnums=(2,), most=3)

    def call(size, by=1):
        np.testing.assert_array_equal(run(jnp.ones(size), 2.0, by), 2 + by)

    for size in (1, 2, 3, 1, 4, 1, 3, 2):
        call(size)
    # 4 replaced 2, which was used longest ago; then 2 replaced 4.
    assert [shape for shape, _ in traced] == [(1,), (2,), (3,), (4,), (2,)] and run.programs().currsize == 3
    call(2, by=5)
    assert traced[-1] == ((2,), 5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the memory maps that Linux lists")
def test_a_program_that_goes_gives_its_memory_maps_back():
    run = bounded_jit(lambda x: jnp.tanh(x @ x.T).sum(), most=4)

    def maps() -> int:
        with open("/proc/self/maps") as file:
            return sum(1 for _ in file)

    counts = []
    for size in range(2, 18):
        run(np.ones((size, 3), np.float32))
        gc.collect()
        counts.append(maps())
    # Each takes several; after the first four their number stays.
    assert max(counts[10:]) <= max(counts[4:10]) + 8
