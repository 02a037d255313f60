"""`jax.jit` for functions that are called with arrays of many different sizes."""

import functools
import threading
from collections import OrderedDict
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
    programs: OrderedDict[tuple, Callable] = OrderedDict()
    lock = threading.Lock()

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        arrays = [x for i, x in enumerate(arguments) if i not in static_argnums]
        leaves, tree = jax.tree.flatten(arrays)
        sizes = tuple((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves)
        key = (tree, sizes, *(arguments[i] for i in static_argnums))
        with lock:
            if key in programs:
                programs.move_to_end(key)
            else:
                if len(programs) >= most:
                    programs.popitem(last=False)
                # JAX caches programs by function, so each program gets its own, freed together with it.
                programs[key] = jax.jit(
                    lambda *arguments: function(*arguments), static_argnums=static_argnums
                )
            program = programs[key]
        return program(*arguments)

    call.programs = programs
    return call
