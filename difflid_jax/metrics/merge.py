"""Bring what each process of a many-host run has gathered to every process, bit for bit."""

import numpy as np
from jax.experimental import multihost_utils


def bytes_of_all_processes(mine: bytes) -> list[bytes]:
    """Every process's bytes, in the order of the processes; all processes must call it.

    Bytes, because JAX would turn a float64 array into float32, which sums of squares do not survive.
    """
    sizes = multihost_utils.process_allgather(np.array([len(mine)], np.int32)).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]
