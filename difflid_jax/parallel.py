"""Devices and processes: one mesh axis `data` over all of them, and what is placed where.

Batches are split over `data`; the training state is whole on every device; the frozen feature network is
whole too or, to save memory, split over `data` and gathered layer by layer by the compiler (FSDP). Nothing
else in the training rooms depends on the number of devices or processes.

Several processes start and end together: `processes` joins them and ends all if one fails. What they exchange
without a collective goes through the key-value store of JAX's coordination service.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # JAX has no public access to its key-value store
from jax.experimental import multihost_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from difflid_jax.cli import UsageError, one_line

_SCHEDULERS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_JOB_ID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "JAX_NUM_PROCESSES": "JAX_COORDINATOR_ADDRESS",
}
_FAILURE = "difflid/failure"
_POLL = 1.0  # seconds between two checks whether another process has failed
_GRACE = 4.0  # seconds that the process with the coordination service stays, so that the others can check
_SILENCE = 60  # seconds without a sign of life after which a process counts as lost (JAX: 100)
_PATIENCE = 6 * 3600  # seconds that a process may need longer than another to open its data

_ending = threading.Lock()  # held by the thread that ends this process


@contextlib.contextmanager
def processes(program: str, multihost: bool) -> Iterator[None]:
    """Make this process one of several, if it was launched as one, and end all of them if one fails.

    An error in the body, or in the body of another process, is printed as one line (a defect as a traceback)
    and ends the process at once: at a normal exit each would wait for the others. See `join_processes`.
    """
    join_processes(multihost)
    if jax.process_count() == 1:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(program, done), daemon=True)
    watcher.start()
    try:
        yield
    except BaseException as error:
        end_all(program, error)
    finally:
        done.set()
        watcher.join()


def end_all(program: str, error: BaseException) -> None:
    """If this is one of several processes, end all of them because of `error`; else return."""
    if jax.process_count() == 1:
        return
    is_input = isinstance(error, (UsageError, ValueError, OSError, KeyboardInterrupt))
    if isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(2 * _POLL)  # a broken connection follows from a failure that is known by now
    line = one_line(error) if is_input else f"{type(error).__name__}: {one_line(error)}"
    status = 130 if isinstance(error, KeyboardInterrupt) else 2 if is_input else 1
    _end(program, line, status, None if is_input else error)


def check_agreement(facts: Mapping[str, Any]) -> None:
    """In every process, raise ValueError naming the `facts` (JSON values) on which processes differ.

    All processes must call it, once.
    """
    if jax.process_count() == 1:
        return
    store, number = global_state.client, jax.process_index()
    store.key_value_set(f"difflid/facts/{number}", json.dumps(dict(facts)))
    every = [
        json.loads(store.blocking_key_value_get(f"difflid/facts/{i}", 1000 * _PATIENCE))
        for i in range(jax.process_count())
    ]
    differing = []
    for name in {**every[0], **facts}:
        values = [facts.get(name) for facts in every]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            differing.append(f"{name} is {values[0]!r} in process 0, {values[other]!r} in process {other}")
    if differing:
        raise ValueError(f"the processes of this run disagree: {'; '.join(differing)}")


def _watch(program: str, done: threading.Event) -> None:
    """End this process when another one has failed."""
    while not done.wait(_POLL):
        if (failure := _failure()) is not None:
            _end(program, failure, 2, None)


def _failure() -> str | None:
    """The failure of another process; None if none has failed."""
    try:
        return global_state.client.key_value_try_get(_FAILURE)
    except Exception:  # no such key, or the coordination service is gone
        return None


def _end(program: str, line: str, status: int, defect: BaseException | None) -> None:
    """Notify the others, print one line, and end this process without waiting for anything."""
    if not _ending.acquire(blocking=False):
        time.sleep(3600)  # the other thread ends the process
    failure = _failure()
    if failure is None:
        with contextlib.suppress(Exception):
            number = jax.process_index()
            global_state.client.key_value_set(_FAILURE, f"process {number} failed: {line}")
        if defect is not None:
            traceback.print_exception(defect)
    print(f"{program}: {failure or line}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(_GRACE)
    os._exit(status)


def join_processes(multihost: bool) -> None:
    """Make this process one of several, if it was launched as one. Call before anything else uses JAX.

    Several processes are recognized by SLURM's or Open MPI's variables with more than one task, or by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; `multihost` asks for them regardless of the
    environment (JAX itself then finds a TPU pod or Kubernetes job).

    Raises ValueError if the other processes cannot be found.
    """
    environment = os.environ
    many = any(
        marker in environment and int(environment.get(count, "1") or 1) > 1
        for count, marker in _SCHEDULERS.items()
    )
    if not (multihost or many):
        return
    given = {}
    if "JAX_NUM_PROCESSES" in environment and "JAX_PROCESS_ID" in environment:
        given = {
            "coordinator_address": environment.get("JAX_COORDINATOR_ADDRESS"),
            "num_processes": int(environment["JAX_NUM_PROCESSES"]),
            "process_id": int(environment["JAX_PROCESS_ID"]),
        }
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    one = visible.isdecimal() or (visible.startswith(("GPU-", "MIG-")) and "," not in visible)
    if one and "JAX_LOCAL_DEVICE_IDS" not in environment:
        # With --gpus-per-task=1 each process sees one GPU, number 0 for CUDA. JAX would ask for as many as
        # there are processes on the host.
        given["local_device_ids"] = [0]
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE, **given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--multihost: the other processes cannot be found ({error}); launch under SLURM, Open MPI or "
            "Kubernetes, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices, by default those of all processes, along the axis `data`."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError for a batch that cannot be split evenly over the devices."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        nearest = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise ValueError(
            f"config.data.batch_size {batch_size} cannot be split evenly over {mesh.size} devices: "
            f"take {nearest}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Arrays that are equal in every process → the same on every device."""
    return jax.tree.map(lambda array: _put(array, replicated(mesh)), tree)


def frozen_format(mesh: Mesh, array: Any, *, fsdp: bool) -> Format:
    """The format of a frozen array: on every device, or split along its longest divisible axis.

    On GPUs the kernels of bfloat16 convolutions are stored as cuDNN reads them, output channels first;
    otherwise every step would transpose them.
    """
    axes = [axis for axis, length in enumerate(array.shape) if length and length % mesh.size == 0]
    sharding = replicated(mesh)
    if fsdp and axes:
        longest = max(axes, key=lambda axis: array.shape[axis])
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))
    on_gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    is_kernel = array.ndim == 4 and array.dtype == jnp.bfloat16
    return Format(Layout((3, 0, 1, 2)) if on_gpu and is_kernel else None, sharding)


def place_frozen(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """The frozen network on the devices of `mesh`, as `frozen_format` says."""
    return jax.tree.map(lambda array: _put(array, frozen_format(mesh, array, fsdp=fsdp)), tree)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Inside a compiled function: a frozen network that may be split, whole on every device."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def on_one_device(mesh: Mesh, tree: Any) -> Any:
    """The same on this process's first device, for work that each process does alone."""
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        tree = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def greatest(mesh: Mesh, mine: int) -> jax.Array | int:
    """The largest of the processes' numbers; read it late, because reading waits for the other processes."""
    if jax.process_count() == 1:
        return mine
    numbers = np.full((jax.local_device_count(),), mine, np.int32)
    return _greatest(jax.make_array_from_process_local_data(batch_sharded(mesh), numbers))


def wait_for_all(name: str) -> None:
    """Return once every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def bytes_of_all_processes(mine: bytes) -> list[bytes]:
    """Every process's bytes, in the order of the processes; all processes must call it.

    Bytes, because JAX would turn a float64 array into float32, too imprecise for sums of squares.
    """
    sizes = multihost_utils.process_allgather(np.array([len(mine)], np.int32)).reshape(-1)
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


def _put(array: Any, sharding: NamedSharding | Format) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


_greatest = jax.jit(lambda numbers: numbers.max())
