"""What an accelerator makes of it: checks the arithmetic, measures the paper's step, writes the table.

    python scripts/gpu_report.py --output=results/gpu.md

Needs nothing but this repository and a GPU or TPU: the ImageNet-256 U-Net gets random weights of its
architecture, the pictures are those that installed packages carry. Checks, which decide the exit status:

1. the h-space in bfloat16 agrees with the h-space in float32 on the same weights;
2. twenty steps at the paper's batch and crop lower the loss, skip no update, leave the frozen U-Net as it is;
3. the same twenty steps, run again, give the same parameters bit for bit, and so do ten and then ten. (Where
   a GPU's kernels add in no fixed order, XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true fixes it.)

Measured: the h-space at the paper's batch and crop, beside the whole U-Net and the greatest rate of matrix
products (benchmark hspace); the step of configs/sots.py with the network in float32 and in bfloat16, split
into its parts (benchmark train). The report ends with what was aimed at on an H200. With --tiny, the shipped
prior and a small network, it runs on a CPU too, to try the script itself.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from difflid_jax import parallel
from difflid_jax.cli import UsageError, run, use_compilation_cache
from difflid_jax.config import experiment as experiments
from difflid_jax.config import inputs, schema
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.pipeline import Batches
from difflid_jax.network.difflid import DiffLI2D
from difflid_jax.training.loss import restoration_loss
from difflid_jax.training.step import TrainState, initial_state, make_step

# Aimed at on an H200.
_STEP_SECONDS = 0.045  # of the paper's configuration, in the training loop
_SCHEDULE_HOURS = 5.5  # of its 1,200 epochs
_SHARE_OF_PEAK = 0.45  # of the h-space, of the measured matrix peak
_FASTER_THAN_WHOLE = 3.0  # h-space, than two passes of the whole U-Net
# bfloat16 keeps 8 bits; through some forty layers the differences add up to a few per cent.
_BFLOAT16_TOLERANCE = 0.05


def _benchmark(name: str):
    path = Path(__file__).parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def paper_experiment(tiny: bool) -> Experiment:
    """configs/sots.py on the photographs that packages carry; `tiny` is for trying the script."""
    config = schema.default()
    config.prior, config.data.source = "", "photographs"
    if tiny:
        config.prior, config.features.dtype = "photos64", "bfloat16"
        config.data.crop, config.data.batch_size = 32, 2 * jax.device_count()
        config.network.preset, config.network.widths = "", (8, 16)
    return experiments.resolve(config)


class Checks:
    """The three checks, on one random prior and one stream of batches."""

    def __init__(self, experiment: Experiment, preset: str, benchmark):
        self.mesh = parallel.make_mesh()
        self.experiment = experiment
        exact = replace(experiment, features=replace(experiment.features, dtype="float32"))
        self.features, self.exact = (benchmark.features_of(e, preset) for e in (experiment, exact))
        self.frozen = parallel.replicate(self.mesh, self.features.frozen)
        spec = experiment.network_on(self.features.channels)
        self.graph = nnx.graphdef(nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0))))
        optimizer = experiment.optimizer(13_990)
        self.start = jax.jit(
            lambda: initial_state(nnx.state(DiffLI2D(spec, rngs=nnx.Rngs(0))), optimizer, seed=0)
        )
        step = make_step(restoration_loss(self.graph, self.features.apply), optimizer)
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
            high = jax.jit(self.exact.apply)(self.frozen, hazy, key)
        pairs = [[np.asarray(m, np.float32) for m in pair] for pair in zip(low, high, strict=True)]
        return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)

    def train(self, state: TrainState, batches: Batches, steps: int) -> tuple[TrainState, list[dict]]:
        said = []
        for _ in range(steps):
            state, metrics = self.step(state, self.frozen, next(batches))
            said.append(metrics)
        return state, jax.device_get(said)

    def run(self) -> list[tuple[str, bool, str]]:
        """(what was checked, whether it holds, with which figure)."""
        error = self.bfloat16()
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(self.frozen)]
        first, said = self.train(parallel.replicate(self.mesh, self.start()), self.batches(), 20)
        again, _ = self.train(parallel.replicate(self.mesh, self.start()), self.batches(), 20)
        batches = self.batches()
        half, _ = self.train(parallel.replicate(self.mesh, self.start()), batches, 10)
        state, other = jax.device_get(half), self.batches()
        other.set_state(batches.get_state())
        resumed, _ = self.train(parallel.replicate(self.mesh, state), other, 10)
        after = [np.asarray(leaf) for leaf in jax.tree.leaves(self.frozen)]
        losses = [float(metrics["loss"]) for metrics in said]
        skipped = int(said[-1]["skipped"])
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


def _aims(h_space, seconds: dict[str, float], paper_steps: int) -> list[str]:
    """A Markdown table of the targets; `seconds` of a step in the loop by the network's type."""
    faster = h_space.ratio(h_space.rows[1])
    rows = [
        (
            f"h-space at {100 * _SHARE_OF_PEAK:.0f} % of the measured matrix peak, or more",
            h_space.share_of_peak >= _SHARE_OF_PEAK,
            f"{100 * h_space.share_of_peak:.1f} %",
        ),
        (
            f"h-space {_FASTER_THAN_WHOLE:.0f} times as fast as the whole U-Net twice, or more",
            faster >= _FASTER_THAN_WHOLE,
            f"{faster:.2f} times",
        ),
    ]
    for dtype, step in seconds.items():
        hours = step * paper_steps / 3600
        rows += [
            (
                f"step in the loop, network in {dtype}: {1e3 * _STEP_SECONDS:.0f} ms or less",
                step <= _STEP_SECONDS,
                f"{1e3 * step:.1f} ms",
            ),
            (
                f"whole schedule, network in {dtype}: under {_SCHEDULE_HOURS} hours",
                hours < _SCHEDULE_HOURS,
                f"{hours:.2f} hours",
            ),
        ]
    lines = ["| aim | reached | figure |", "|---|---|---|"]
    return lines + [f"| {aim} | {'yes' if held else 'no'} | {figure} |" for aim, held, figure in rows]


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    if jax.default_backend() == "cpu" and not options.tiny:
        raise UsageError("no GPU or TPU is found (JAX runs on CPU); --tiny tries the script on what there is")
    use_compilation_cache()
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    benchmark = _benchmark("train")
    preset, experiment = "256x256_diffusion_uncond", paper_experiment(options.tiny)
    device = jax.devices()[0].device_kind
    prior = experiment.prior or f"{preset} with random weights"
    lines = [
        f"# {jax.device_count()} × {device}",
        "",
        f"jax {jax.__version__}; frozen model: {prior}.",
        "",
    ]

    def report(*more: str) -> None:
        """Rewritten after each part: what is measured stays, whatever ends the script."""
        lines.extend(more)
        output.write_text("\n".join(lines) + "\n")

    checked = Checks(experiment, preset, benchmark).run()
    rows = [f"| {name} | {'yes' if holds else '**no**'} | {figure} |" for name, holds, figure in checked]
    report("| check | holds | figure |", "|---|---|---|", *rows)
    both_times = _benchmark("hspace")
    h_space = both_times.measure(
        weights=experiment.prior,
        preset=preset,
        size=experiment.crop.size,
        batch=experiment.batch_size,
        turns=options.steps,
    )
    report("", "## h-space at both timesteps", "", "```", both_times.table(h_space), "```")
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        measured = benchmark.measure(replace(experiment, network_dtype=dtype), preset, options.steps)
        report("", f"## Step of configs/sots.py, network in {dtype}", "", benchmark.table(measured))
        seconds[dtype] = measured.in_loop
    report("", "## Aimed at on an H200", "", *_aims(h_space, seconds, benchmark.PAPER_STEPS))
    print(output.read_text())
    return 0 if all(holds for _, holds, _ in checked) else 1


if __name__ == "__main__":
    flags.DEFINE_string("output", "results/gpu.md", "The report, Markdown.")
    flags.DEFINE_integer("steps", 50, "Times that each part is measured.", lower_bound=2)
    flags.DEFINE_bool("tiny", False, "A small network, on any device, to try the script itself.")
    run(main)
