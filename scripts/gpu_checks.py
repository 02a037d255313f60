"""Checks of the train step on an accelerator; see gpu_report.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.train import features_of
from flax import nnx

from difflid_jax import parallel
from difflid_jax.config import inputs
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.pipeline import Batches
from difflid_jax.network.difflid import DiffLI2D
from difflid_jax.tasks.restorer import loss_of, make_network
from difflid_jax.training.step import TrainState, initial_state, make_step

# bfloat16 keeps 8 bits; through some forty layers the differences add up to a few per cent.
_BFLOAT16_TOLERANCE = 0.05


class Checks:
    """bfloat16, twenty steps, and their repetition, with one prior and one stream of batches."""

    def __init__(self, experiment: Experiment, preset: str):
        self.mesh = parallel.make_mesh()
        self.experiment = experiment
        exact = replace(experiment, features=replace(experiment.features, dtype="float32"))
        self.features, self.exact = (features_of(e, preset) for e in (experiment, exact))
        self.frozen = parallel.replicate(self.mesh, self.features.frozen)
        spec = experiment.network_on(self.features.channels)

        def network() -> DiffLI2D:
            return make_network(spec, experiment)

        self.graph = nnx.graphdef(nnx.eval_shape(network))
        optimizer = experiment.optimizer(13_990)
        self.start = jax.jit(lambda: initial_state(nnx.state(network()), optimizer, seed=0))
        step = make_step(loss_of(experiment, self.graph, self.features.apply), optimizer)
        self.step = jax.jit(step, donate_argnums=0, out_shardings=parallel.replicated(self.mesh))

    def batches(self) -> Batches:
        return Batches(
            inputs.open_images(self.experiment.train),
            self.experiment.crop,
            self.experiment.batch_size,
            haze=self.experiment.haze,
            sharding=parallel.batch_sharded(self.mesh),
        )

    def bfloat16(self) -> float:
        """The relative error of the h-space, the greater of the two maps."""
        hazy = next(self.batches())["hazy"].astype(jnp.float32) / 127.5 - 1
        key = jax.random.key(0)
        low = jax.jit(self.features.apply)(self.frozen, hazy, key)
        with jax.default_matmul_precision("float32"):
            high = jax.jit(self.exact.apply)(self.exact.frozen, hazy, key)
        pairs = [[np.asarray(m, np.float32) for m in pair] for pair in zip(low, high, strict=True)]
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)

    def train(self, state: TrainState, batches: Batches, steps: int) -> tuple[TrainState, list[dict]]:
        rows = []
        for _ in range(steps):
            state, metrics = self.step(state, self.frozen, next(batches))
            rows.append(metrics)
        return state, jax.device_get(rows)

    def run(self) -> list[tuple[str, bool, str]]:
        """(what is checked, whether it holds, with which figure)."""
        error = self.bfloat16()
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(self.frozen)]
        first, metrics = self.train(parallel.replicate(self.mesh, self.start()), self.batches(), 20)
        again, _ = self.train(parallel.replicate(self.mesh, self.start()), self.batches(), 20)
        batches = self.batches()
        half, _ = self.train(parallel.replicate(self.mesh, self.start()), batches, 10)
        state, other = jax.device_get(half), self.batches()
        other.set_state(batches.get_state())
        resumed, _ = self.train(parallel.replicate(self.mesh, state), other, 10)
        after = [np.asarray(leaf) for leaf in jax.tree.leaves(self.frozen)]
        losses = [float(row["loss"]) for row in metrics]
        skipped = int(metrics[-1]["skipped"])
        early, late = np.mean(losses[:5]), np.mean(losses[-5:])
        return [
            ("h-space in bfloat16 against float32", error < _BFLOAT16_TOLERANCE, f"{error:.4f} relative"),
            ("the loss falls, no update skipped", late < early and not skipped, f"{early:.4f} → {late:.4f}"),
            ("frozen U-Net unchanged", all(map(np.array_equal, before, after)), f"{len(before)} arrays"),
            ("twenty steps twice", _same(first, again), "bit for bit"),
            ("ten and then ten", _same(first, resumed), "bit for bit"),
        ]


def _same(a: TrainState, b: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)
