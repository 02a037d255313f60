"""The same step on one, four and eight devices, and the frozen network whole or split over them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from difflid_jax import parallel

# Run where eight devices are simulated; prints how far each mesh is from one device, relative to the largest.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental.layout import Format, Layout
from pathlib import Path
from difflid_jax.features.build import build_features
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax import parallel
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.loss import restoration_loss
from difflid_jax.training.optimizer import OptimizerSpec
from difflid_jax.training.step import initial_state, make_step

prior, folder = sys.argv[1:]
features = build_features("h_space", prior)
spec = NetworkSpec((8, 16), features.channels, heads=2)
graph, shapes = nnx.split(nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0))))
draw = np.random.default_rng(1).standard_normal
params = jax.tree.map(lambda p: jnp.asarray(0.1 * draw(p.shape), jnp.float32), shapes)
optimizer = OptimizerSpec(steps=10, halve_every=5, learning_rate=1e-3)
images = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)

def one_step(count, fsdp):
    mesh = parallel.make_mesh(jax.devices()[:count])
    state = parallel.replicate(mesh, initial_state(params, optimizer, seed=3))
    frozen = parallel.place_frozen(mesh, features.frozen, fsdp=fsdp)
    if fsdp:  # and the kernels as they lie on a GPU
        gpu = lambda a: jax.device_put(a, Format(Layout((3, 0, 1, 2)), a.sharding)) if a.ndim == 4 else a
        frozen = jax.tree.map(gpu, frozen)
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(frozen))
    apply = lambda frozen, x, key: features.apply(parallel.gathered(mesh, frozen), x, key)
    everywhere = parallel.replicated(mesh)
    step = jax.jit(make_step(restoration_loss(graph, apply), optimizer), out_shardings=everywhere)
    batch = {n: jax.device_put(p, parallel.batch_sharded(mesh)) for n, p in zip(("hazy", "clean"), images)}
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]
    state, metrics = step(state, frozen, batch)
    assert all((np.asarray(a) == b).all() for a, b in zip(jax.tree.leaves(frozen), before))
    gradients = [np.asarray(m) / (1 - optimizer.b1) for m in jax.tree.leaves(state.optimizer[1].mu)]
    return mesh, state, float(metrics["loss"]), gradients, split

_, state, loss, gradients, _ = one_step(1, False)
norm = np.linalg.norm
total = norm([norm(g) for g in gradients])
measured = {"leaves": len(gradients), "compared": sum(norm(g) > 1e-6 * total for g in gradients).item()}
for count, fsdp in ((4, False), (8, True)):
    mesh, other, l, found, split = one_step(count, fsdp)
    far = [norm(f - g) / norm(g) for f, g in zip(found, gradients) if norm(g) > 1e-6 * total]
    whole = norm([norm(f - g) for f, g in zip(found, gradients)]) / total
    errors = {"loss": abs(l - loss) / loss, "gradient": whole.item(), "worst": max(far).item()}
    measured[f"{count} {fsdp}"] = errors | {"split": split}

checkpoints = Checkpoints(Path(folder), keep=1)
checkpoints.save(1, other, {}, {})
fewer = parallel.make_mesh(jax.devices()[:4])
like = parallel.replicate(fewer, initial_state(params, optimizer, seed=0))
restored = checkpoints.restore_latest(like).state
same = jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), restored, other)
measured["resumed on fewer"] = bool(all(jax.tree.leaves(same)))
measured["devices then"] = len(restored.step.sharding.device_set)
checkpoints.close()
print(json.dumps(measured))
"""


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    eight = f"--xla_force_host_platform_device_count=8 {tiny.environment['XLA_FLAGS']}"
    environment = tiny.environment | {"XLA_FLAGS": eight}
    folder = tmp_path_factory.mktemp("mesh") / "checkpoints"
    command = [sys.executable, "-c", PROGRAM, str(tiny.prior), str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# Sums over the batch are taken in another order: float32 keeps about seven digits.
@pytest.mark.parametrize("mesh", ["4 False", "8 True"])
def test_a_step_gives_the_same_loss_and_gradients_on_any_mesh(measured, mesh):
    print(measured)
    assert measured[mesh]["loss"] <= 1e-5
    assert measured[mesh]["gradient"] <= 1e-5
    assert measured[mesh]["worst"] <= 1e-5
    # All but the bias of K in each of the three blocks, to which softmax is blind.
    assert measured["compared"] == measured["leaves"] - 3


def test_fsdp_splits_the_frozen_network_and_nothing_else_does(measured):
    assert measured["8 True"]["split"] > 20 and measured["4 False"]["split"] == 0


def test_a_checkpoint_of_eight_devices_is_restored_on_four(measured):
    assert measured["resumed on fewer"] and measured["devices then"] == 4


def test_a_batch_that_does_not_divide_is_refused_with_what_would():
    mesh = parallel.make_mesh()
    parallel.check_batch_size(mesh, 8 * mesh.size)

    class Three:
        size = 3

    with pytest.raises(
        ValueError, match="batch_size 40 cannot be split evenly over 3 devices: take 39 or 42"
    ):
        parallel.check_batch_size(Three(), 40)


@pytest.mark.skipif(jax.process_count() > 1, reason="asks for a single process")
def test_one_process_needs_no_other(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "JAX_COORD", "JAX_NUM", "JAX_PROC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(jax.distributed, "initialize", None)
    parallel.join_processes(False)
    parallel.check_agreement({"seed": 0})
    with pytest.raises(ValueError, match="bad"), parallel.processes("train", False):
        raise ValueError("bad")  # raised as it is, without ending this process
    assert parallel.greatest(parallel.make_mesh(), 15) == 15
    np.testing.assert_array_equal(parallel.on_one_device(parallel.make_mesh(), [jax.numpy.ones(3)])[0], 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {}),
        # As --gpus-per-task=1 has it.
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "16", "CUDA_VISIBLE_DEVICES": "3"},
            {"local_device_ids": [0]},
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"coordinator_address": "host:1234", "num_processes": 2, "process_id": 1},
        ),
    ],
)
def test_many_processes_are_recognised(monkeypatch, environment, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "JAX_COORD", "JAX_NUM", "JAX_PROC", "JAX_LOCAL", "CUDA_VIS")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.append(options))
    parallel.join_processes(False)
    assert given == [expected | {"heartbeat_timeout_seconds": 60}]


def test_many_processes_that_cannot_be_found_are_an_error(monkeypatch):
    def missing(**options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", missing)
    with pytest.raises(ValueError, match=r"--multihost: .*coordinator_address.*; launch under SLURM"):
        parallel.join_processes(True)
