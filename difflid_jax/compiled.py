"""`jax.jit` for functions that are called with arrays of many different sizes."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# A compiled program takes megabytes and some ten of the 65,530 memory maps that Linux allows a process.
MOST_PROGRAMS = 32


def bounded_jit(
    function: Callable[..., Any], *, static_argnums: Sequence[int] = (), most: int = MOST_PROGRAMS
) -> Callable[..., Any]:
    """`jax.jit(function)` that keeps the programs of the `most` latest sizes; positional arguments only.

    JAX itself keeps every program until the process ends.
    """
    lock = threading.Lock()  # two threads that need a program of one size compile it once

    @functools.lru_cache(most)
    def program(*key: Any) -> Callable[..., Any]:
        # JAX caches programs by function, so each program gets its own, freed together with it.
        return jax.jit(lambda *arguments: function(*arguments), static_argnums=static_argnums)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        arrays = [x for i, x in enumerate(arguments) if i not in static_argnums]
        leaves, tree = jax.tree.flatten(arrays)
        sizes = tuple((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves)
        with lock:
            run = program(tree, sizes, *(arguments[i] for i in static_argnums))
        return run(*arguments)

    call.programs = program.cache_info
    return call
