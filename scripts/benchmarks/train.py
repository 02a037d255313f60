"""What a training step costs and where the time goes: input, h-space, network, optimizer.

    python scripts/benchmark.py train --config=configs/sots.py
    python scripts/benchmark.py train --config=configs/demo.py --steps=50
    python scripts/benchmark.py train --config=configs/sots.py --authors=~/src/difflid --authors_batch=1

If --config.prior is empty, the frozen model is --preset with random weights; if --config.data.train is empty,
the images are photographs from installed packages. Neither changes the time of a step.

The parts are compiled one by one and measured in turns; the whole step is one program, in which they overlap.
"in the loop" is the training loop itself, from image files to logged metrics: what it takes beyond the whole
step is overhead. If PyTorch is installed, --authors (a checkout of aaaasan111/difflid) also runs the authors'
own step: the whole U-Net in float32, once per timestep, and their smaller network.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from measuring import Part, compiled_part, measure_in_turns, memory_of, pytorch_unet, random_unet
from ml_collections import config_flags

from difflid_jax import parallel
from difflid_jax.cli import UsageError, refuse_arguments, resolve_dtype, run
from difflid_jax.config import experiment as experiments
from difflid_jax.config import inputs
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.pipeline import Batches
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.features.h_space import feature_channels, h_space
from difflid_jax.features.prior import in_compute_dtype
from difflid_jax.network.difflid import DiffLI2D
from difflid_jax.tasks.restorer import loss_of, make_network
from difflid_jax.training import loop, throughput
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.interruption import Interruption
from difflid_jax.training.log import RunLog
from difflid_jax.training.step import TrainState, initial_state, make_step

PAPER_STEPS = 420_000  # of the SOTS schedule: 1,200 epochs of 350
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@dataclass(frozen=True)
class Measured:
    """parts: input, h-space, network, optimizer, whole step, each measured in turns.

    in_loop: seconds a step of the training loop takes. memory: bytes that the compiled step takes on a
    device. peak: what the devices could do, in FLOP/s (0: unknown).
    """

    experiment: Experiment
    parts: list[Part]
    in_loop: float
    memory: int
    peak: float

    @property
    def whole(self) -> Part:
        return self.parts[-1]


def measure(experiment: Experiment, preset: str, steps: int) -> Measured:
    """Measure an experiment: `steps` turns of every part, then as many steps of the loop."""
    mesh = parallel.make_mesh()
    parallel.check_batch_size(mesh, experiment.batch_size)
    features = features_of(experiment, preset)
    spec = experiment.network_on(features.channels)

    def network() -> DiffLI2D:
        return make_network(spec, experiment)

    graph = nnx.graphdef(nnx.eval_shape(network))
    optimizer = experiment.optimizer(13_990)
    frozen = parallel.place_frozen(mesh, features.frozen, fsdp=experiment.fsdp)
    make_state = jax.jit(lambda: initial_state(nnx.state(network()), optimizer, experiment.seed))
    state = parallel.replicate(mesh, make_state())
    with tempfile.TemporaryDirectory() as folder:
        batches = Batches(
            inputs.open_images(experiment.train, cache=Path(folder) / "cache"),
            experiment.crop,
            experiment.batch_size,
            haze=experiment.haze,
            workers=experiment.workers,
            sharding=parallel.batch_sharded(mesh),
        )
        batch = next(batches)

        def apply(frozen, x, key):
            return features.apply(parallel.gathered(mesh, frozen), x, key)

        def loss(features):
            return loss_of(experiment, graph, features)

        step = make_step(loss(apply), optimizer)
        lowered = jax.jit(step, donate_argnums=0, out_shardings=parallel.replicated(mesh)).lower(
            state, frozen, batch
        )
        compiled = lowered.compile()
        holder = [state]

        def whole() -> None:
            holder[0], metrics = compiled(holder[0], frozen, batch)
            jax.block_until_ready(metrics)

        parts = [
            Part("input, one thread", _counted(batches.make)),
            *_pieces(loss, apply, optimizer, holder[0], frozen, batch, mesh),
            Part("whole step", whole, throughput.flops(lowered)),
        ]
        measure_in_turns(parts, steps)
        in_loop = _loop(experiment, steps, compiled, holder[0], frozen, batches, mesh, Path(folder))
        batches.close()
    return Measured(experiment, parts, in_loop, memory_of(compiled), throughput.peak())


def features_of(experiment: Experiment, preset: str) -> FrozenFeatures:
    """The features of the config's prior or, without one, of a preset filled with repeated random numbers."""
    if experiment.prior:
        return inputs.open_features(experiment)
    if experiment.features.kind != "h_space":
        raise UsageError(
            f"--config.prior is empty: only the h-space is drawn at random, not {experiment.features.kind}"
        )
    dtype, unet_spec = jnp.dtype(resolve_dtype(experiment.features.dtype)), PRESETS[preset]
    spec = experiment.features.h_space
    unet = random_unet(unet_spec, spec.part, dtype)
    in_compute_dtype(unet)
    schedule = Schedule.named(unet_spec.noise_schedule, unet_spec.diffusion_steps)
    graph, frozen = nnx.split(unet)
    return FrozenFeatures(
        lambda frozen, x, key: h_space(nnx.merge(graph, frozen), schedule, x, key, spec),
        frozen,
        feature_channels(unet, spec),
        spec.multiple(unet_spec),
        "",
    )


def _counted(make: Callable[[int], Any]) -> Callable[[], Any]:
    numbers = iter(range(1, 1 << 30))
    return lambda: make(next(numbers))


def _pieces(loss, apply, optimizer, state: TrainState, frozen, batch, mesh) -> list[Part]:
    """h-space; network forward and backward on given features; what is left of the step."""
    key = jax.random.key(0)
    seen = batch.get("view", batch["hazy"])
    signed = jax.jit(lambda x: x.astype(jnp.float32) / 127.5 - 1)(seen)
    # A copy, because the whole step reuses the buffers of the state it is given.
    own = jax.tree.map(jnp.copy, state)
    look = compiled_part("h-space", apply, frozen, signed, key)
    maps = look.call()

    def given(maps, x, key):
        return maps

    differentiate = jax.grad(loss(given), has_aux=True)
    arguments = own.params, maps, batch, key, own.step
    gradients = compiled_part("network, forward and backward", differentiate, *arguments)
    example = gradients.call()[0]

    def linear(params, example, batch, key, step):
        # With a loss whose gradients are given, only the guard, Adam and the average remain of the step.
        return optax.tree.vdot(params, example), {}

    update = jax.jit(make_step(linear, optimizer), out_shardings=parallel.replicated(mesh))
    compiled = update.lower(state, example, batch).compile()
    rest = Part("optimizer", lambda: jax.block_until_ready(compiled(own, example, batch)))
    return [look, gradients, rest]


def _loop(experiment, steps, compiled, state, frozen, batches, mesh, folder: Path) -> float:
    """Seconds a step of the training loop, without the first ones and without checkpoints."""
    first = int(state.step)
    every = max(1, steps // 2)
    spec = loop.LoopSpec(
        steps=first + every * 3,
        batch_size=experiment.batch_size,
        log_every=every,
        checkpoint_every=1 << 30,
    )
    rates: list[float] = []

    class Rates(RunLog):
        def training(self, step, values):
            rates.append(values["images_per_second"])

    log = Rates(folder, first_step=first, total_steps=spec.steps, tensorboard=False)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    with Interruption() as interruption:
        loop.run(
            spec, compiled, state, frozen, batches, mesh=mesh, checkpoints=checkpoints, log=log,
            interruption=interruption, meta={},
        )  # fmt: skip
    log.close()
    checkpoints.close()
    return experiment.batch_size / float(np.median(rates[1:]))


def authors_step(checkout: str, batch: int, size: int, preset: str, steps: int) -> float:
    """Seconds per image of the authors' own training step in PyTorch, on the same kind of device."""
    spec = PRESETS[preset]
    unet = pytorch_unet("--authors", checkout, spec)
    import torch
    from models.net import DiffLI2D as TheirNetwork
    from models.net import HSpaceExtractor

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    extract = HSpaceExtractor(unet, 0.9999, 0.0778, device=device)
    network = TheirNetwork(h_channels=spec.out_channels).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4)
    hazy = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        restored = network(hazy, *extract(hazy))
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(restored, hazy).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) / batch


def table(measured: Measured) -> str:
    """A Markdown table of the parts, and what follows from the whole."""
    batch = measured.experiment.batch_size
    lines = ["| part | ms | GFLOP |", "|---|---:|---:|"]
    for part in measured.parts:
        gflop = f"{part.flops / 1e9:,.1f}" if part.flops else ""
        lines.append(f"| {part.name} | {1e3 * part.median:,.2f} | {gflop} |")
    lines.append(f"| in the loop | {1e3 * measured.in_loop:,.2f} | |")
    share = measured.whole.flops / measured.in_loop / measured.peak if measured.peak else 0
    hours = measured.in_loop * PAPER_STEPS / 3600
    process = throughput.peak_memory()
    lines += [
        "",
        f"- {batch / measured.in_loop:,.1f} images/s in the loop, batches of {batch}, crops of "
        f"{measured.experiment.crop.size}; overhead beyond the compiled step "
        f"{100 * (measured.in_loop / measured.whole.median - 1):.1f} %",
        f"- {hours:,.1f} hours for {PAPER_STEPS:,} steps, the paper's on SOTS (of 40 crops of 128)",
        f"- memory of a device at the peak: {measured.memory / 2**30:.2f} GiB for the compiled step"
        + (f", {process / 2**30:.2f} GiB for all of this process so far" if process else ""),
    ]
    if share:
        lines.append(f"- {100 * share:.0f} % of the devices' bfloat16 peak, as their makers give it")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    options = flags.FLAGS
    config = options.config
    if not config.data.train:
        config.data.source = "photographs"
    experiment = experiments.resolve(config)
    measured = measure(experiment, options.preset, options.steps)
    print(f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print(table(measured))
    if options.authors:
        theirs = authors_step(
            options.authors, options.authors_batch, experiment.crop.size, options.preset, options.steps
        )
        ours = measured.in_loop / experiment.batch_size
        print(
            f"- the authors' step in PyTorch: {1e3 * theirs:,.1f} ms per image, ours {1e3 * ours:,.1f} ms "
            f"({theirs / ours:.1f} times as fast)"
        )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", str(_CONFIGS / "sots.py"), "The experiment to measure.")
    flags.DEFINE_enum(
        "preset", "256x256_diffusion_uncond", list(PRESETS), "Frozen model if --config.prior is ''."
    )
    flags.DEFINE_integer("steps", 20, "Times that each part is measured.", lower_bound=2)
    flags.DEFINE_string("authors", "", "Checkout of aaaasan111/difflid, to compare with.")
    flags.DEFINE_integer(
        "authors_batch", 1, "Their batch size: attention takes 4 GiB per image and map at 128 px."
    )
    run(main)
