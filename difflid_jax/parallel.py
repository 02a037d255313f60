"""Devices and processes: one mesh axis `data` over all of them, and what lies where.

Batches are split over `data`; the training state is whole on every device; the frozen feature network is
whole too or, to save memory, split over `data` and gathered layer by layer by the compiler (FSDP). Nothing
else in the training rooms knows how many devices or processes there are.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_SCHEDULERS = {
    "SLURM_STEP_NUM_TASKS": "SLURM_JOB_ID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "JAX_NUM_PROCESSES": "JAX_COORDINATOR_ADDRESS",
}


def join_processes(multihost: bool) -> None:
    """Make this process one of many, if it was launched so. Call before anything else touches JAX.

    Many processes are recognised by SLURM's or Open MPI's variables with more than one task, or by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set by hand; `multihost` asks for them
    whatever the environment says (a TPU pod or Kubernetes job is then found by JAX itself).

    Raises ValueError where `multihost` is asked for and no coordinator can be found.
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
        # The scheduler shows each process one GPU only (--gpus-per-task=1): it is the first that CUDA counts.
        # JAX would ask for as many as there are processes on the host.
        given["local_device_ids"] = [0]
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--multihost: the other processes cannot be found ({error}); launch under SLURM, Open MPI or "
            "Kubernetes, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices, by default all of all processes, along the axis `data`."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError where a batch cannot be split evenly over the devices."""
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
    """Arrays that every process holds alike → the same on every device."""
    return jax.tree.map(lambda array: _put(array, replicated(mesh)), tree)


def frozen_sharding(mesh: Mesh, array: Any, *, fsdp: bool) -> NamedSharding:
    """Where an array of the frozen network lies: on all devices, or split along its longest divisible axis."""
    axes = [axis for axis, length in enumerate(array.shape) if length and length % mesh.size == 0]
    if not fsdp or not axes:
        return replicated(mesh)
    longest = max(axes, key=lambda axis: array.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))


def place_frozen(mesh: Mesh, tree: Any, *, fsdp: bool) -> Any:
    """The frozen network on the devices of `mesh`, as `frozen_sharding` says."""
    return jax.tree.map(lambda array: _put(array, frozen_sharding(mesh, array, fsdp=fsdp)), tree)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Inside a compiled function: a frozen network that may lie split, whole on every device."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def on_one_device(mesh: Mesh, tree: Any) -> Any:
    """The same on this process's first device, for work that each process does alone."""
    if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        tree = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def greatest(mesh: Mesh, mine: int) -> jax.Array | int:
    """The greatest of the numbers that the processes give: to be read late, so that asking stops nobody."""
    if jax.process_count() == 1:
        return mine
    numbers = np.full((jax.local_device_count(),), mine, np.int32)
    return _greatest(jax.make_array_from_process_local_data(batch_sharded(mesh), numbers))


def wait_for_all(name: str) -> None:
    """Return once every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


_greatest = jax.jit(lambda numbers: numbers.max())
