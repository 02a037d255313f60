"""Train a diffusion prior on pictures, or go on with a run that was stopped.

    python -m difflid_jax.pretrain --config=configs/prior_64.py --workdir=runs/prior \
        --config.data.train=photos/ --config.data.validation=others/

The same loop as `train`: any field of the config can be changed on the command line; the same command
resumes; SIGTERM and Ctrl-C save. Every evaluation draws samples into sheets/ and writes the loss on the
pictures of --config.data.validation, over all timesteps and by hundreds of them. --config.init=WEIGHTS starts
from other weights of the same architecture. At the end, weights/ holds the model, averaged where the config
asks for it: use it as --config.prior of `train`, or look at it with `sample`.
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import config_flags

from difflid_jax import parallel
from difflid_jax.cli import UsageError, run
from difflid_jax.config import experiment as experiments
from difflid_jax.config import identity, inputs
from difflid_jax.config.experiment import PriorExperiment
from difflid_jax.data.pipeline import Batches, signed
from difflid_jax.data.sources import DataSet
from difflid_jax.diffusion.objective import hybrid_loss, loss_by_time
from difflid_jax.diffusion.sampling import Sampler
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.training import loop, throughput, workdir
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.log import RunLog
from difflid_jax.training.loop import Diverged, Interruption
from difflid_jax.training.step import Loss, initial_state, make_step
from difflid_jax.weights import store


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    options = flags.FLAGS
    if options.config is None or not options.workdir:
        raise UsageError("give --config=configs/prior_64.py and --workdir=FOLDER, see --help")
    experiment = experiments.resolve_prior(options.config)
    inputs.check_given(experiment)
    parallel.join_processes(options.multihost)
    with Interruption() as interruption:
        return pretrain(experiment, Path(options.workdir), interruption)


def diffusion_loss(graph: nnx.GraphDef, schedule: Schedule, variance_weight: float, drops: bool) -> Loss:
    """Eq. 4 and the learned-variance bound on a batch {'image': uint8 (B,H,W,3)}.

    `graph` is the U-Net's, whose parameters the loss is given. Timesteps are drawn evenly. `drops`: the
    architecture has dropout, which is on.
    """

    def loss(params, frozen, batch, key):
        x0 = signed(batch["image"])
        for_t, for_noise, for_dropout = jax.random.split(key, 3)
        t = jax.random.randint(for_t, (len(x0),), 0, schedule.steps, jnp.int32)
        noise = jax.random.normal(for_noise, x0.shape, jnp.float32)
        x_t = schedule.sample_noisy(x0, t, noise)
        output = nnx.merge(graph, params)(x_t, t, key=for_dropout if drops else None)
        simple, bound = hybrid_loss(schedule, x0, x_t, t, noise, output)
        total = jnp.mean(simple + variance_weight * bound)
        return total, {"noise_loss": jnp.mean(simple), "bound": jnp.mean(bound)}

    return loss


def pretrain(experiment: PriorExperiment, folder: Path, interruption: Interruption) -> int:
    """Train an experiment in a workdir to its end; the exit status.

    Raises ValueError or OSError for what cannot be trained, before anything is written.
    """
    mesh = parallel.make_mesh()
    parallel.check_batch_size(mesh, experiment.batch_size)
    spec = experiment.unet
    schedule = Schedule.named(spec.noise_schedule, spec.diffusion_steps)
    resuming = workdir.has_checkpoints(folder)
    graph, params = _start(spec, experiment, resuming)
    pictures = inputs.open_images(experiment.train)
    validation = inputs.open_images(experiment.validation) if experiment.validation.is_given else None
    crop = experiment.crop
    if crop.size % spec.stride:
        raise ValueError(
            f"config.data.crop must be a multiple of {spec.stride} for this U-Net, not {crop.size}"
        )
    Batches(pictures, crop, experiment.batch_size)  # refuses images smaller than the crop
    optimizer = experiment.optimizer(len(pictures))
    state = initial_state(params, optimizer, experiment.seed)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) * (experiment.keep + 2)
    workdir.check(folder, needed)
    if resuming:
        workdir.check_same_run(folder, experiment.differences)

    checkpoints = Checkpoints(
        folder / workdir.CHECKPOINTS, keep=experiment.keep, metric="loss", highest=False
    )
    batches = Batches(
        inputs.open_images(experiment.train, experiment.cache or folder / "cache"),
        crop,
        experiment.batch_size,
        seed=experiment.seed,
        workers=experiment.workers,
        sharding=parallel.batch_sharded(mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    state = parallel.replicate(mesh, state)
    meta: Mapping[str, Any] = {"fingerprint": experiment.fingerprint}
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        state, meta = restored.state, restored.meta
        batches.set_state(restored.data)
    workdir.create(folder, identity.to_json(experiment.fields, indent=2))
    _say(_summary(experiment, mesh, spec, params, pictures, int(state.step), folder))

    loss = diffusion_loss(graph, schedule, experiment.variance_weight, drops=spec.dropout > 0)
    shape = (experiment.batch_size, crop.size, crop.size, 3)
    example = {"image": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=parallel.batch_sharded(mesh))}
    step = jax.jit(make_step(loss, optimizer), donate_argnums=0, out_shardings=parallel.replicated(mesh))
    step = step.lower(state, None, example)
    log = RunLog(
        folder,
        first_step=int(state.step),
        total_steps=optimizer.steps,
        tensorboard=experiment.tensorboard,
        primary=jax.process_index() == 0,
    )
    try:
        outcome = loop.run(
            experiment.loop(len(pictures), flops=throughput.flops(step), peak=throughput.peak()),
            step.compile(),
            state,
            None,
            batches,
            mesh=mesh,
            checkpoints=checkpoints,
            log=log,
            interruption=interruption,
            meta=meta,
            evaluate=validation and _scorer(graph, spec, schedule, validation, experiment),
            profile_folder=folder / "profile",
        )
        if outcome.signal:
            command = shlex.join(["python", "-m", "difflid_jax.pretrain", *sys.argv[1:]])
            log.say(f"stopped by signal {outcome.signal}; the run is saved. To resume: {command}")
            return 128 + outcome.signal
        if jax.process_index() == 0:
            unet = nnx.merge(graph, outcome.state.eval_params)
            about = {"config": experiment.fields, "step": outcome.step}
            store.save(folder / "weights", "unet", store.tensors_of(unet), spec.to_dict(), **about)
        log.say(f"weights of step {outcome.step:,}: {folder / 'weights'}")
    except Diverged as error:
        log.say(f"pretrain: {error}")
        return 1
    finally:
        log.close()
        batches.close()
        checkpoints.close()
    return 0


def _start(
    spec: UNetSpec, experiment: PriorExperiment, resuming: bool = False
) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and first parameters: random, or those of `config.init`; a run that goes on has its own."""

    def make() -> UNet:
        return UNet(spec, dtype=jnp.dtype(experiment.dtype), rngs=nnx.Rngs(experiment.seed))

    abstract = nnx.eval_shape(make)
    graph = nnx.graphdef(abstract)
    if not experiment.init or resuming:
        return graph, jax.jit(lambda: nnx.state(make()))()
    weights = store.read(experiment.init, "unet")
    if (given := weights.spec(UNetSpec)) != spec:
        raise ValueError(f"config.init: {weights.path} is {given}, the config asks for {spec}")
    store.fill(abstract, weights.tensors, where=str(weights.path), dtype=jnp.float32)
    return graph, nnx.state(abstract)


def _scorer(
    graph: nnx.GraphDef, spec: UNetSpec, schedule: Schedule, data: DataSet, experiment: PriorExperiment
) -> Callable:
    """evaluate(params, interrupted) for the loop: losses on held-out crops, and a sheet of samples.

    The crops, their noise and the samples' noise are the same at every evaluation and in every process.
    """
    size = experiment.crop.size
    batch = min(experiment.batch_size, len(data))
    crops = Batches(data, replace(experiment.crop, flip=False), batch)

    measure = loss_by_time(graph, schedule)

    def evaluate(params, interrupted):
        params = jax.device_get(params)
        by_time: dict[int, list[float]] = {}
        batches = (signed(crops.make(number)["image"]) for number in range(experiment.batches))
        for t, loss in measure(params, batches):
            if interrupted():
                return None
            by_time.setdefault(t, []).append(loss)
        scores = {f"loss_t{t:03}": float(np.mean(found)) for t, found in by_time.items()}
        scores = {"loss": float(np.mean(list(scores.values()))), **scores}
        sampler = Sampler(nnx.merge(graph, params), schedule, steps=experiment.sample_steps)
        keys = jax.random.split(jax.random.key(0), 16)
        drawn = np.asarray((sampler(keys, (size, size)) + 1) / 2)
        rows = [list(drawn[i : i + 4]) for i in range(0, 16, 4)]
        return scores, np.asarray(contact_sheet(rows, max_width=size))

    return evaluate


def _summary(
    experiment: PriorExperiment, mesh, spec: UNetSpec, params: Any, data: DataSet, first: int, folder: Path
) -> str:
    encoder = nnx.eval_shape(lambda: UNet(spec, part="encoder", rngs=nnx.Rngs(0)))
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, nnx.state(encoder, nnx.Param))
    ]
    lines = {
        "run": experiment.fingerprint + (f", resumed after step {first:,}" if first else ""),
        "workdir": str(folder),
        "data": f"{len(data):,} pictures, crops of {experiment.crop.size}",
        "trained": f"{counts[0]:,} parameters, {counts[1]:,} of them encoder and middle block",
        "steps": f"{experiment.total_steps(len(data)):,} of {experiment.batch_size} crops",
        "devices": f"{mesh.size} × {jax.devices()[0].device_kind}",
    }
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test hands in its own `values`."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: configs/prior_64.py.", lock_config=True, flag_values=values
    )
    flags.DEFINE_string("workdir", "", "Folder of the run: made, or gone on with.", flag_values=values)
    flags.DEFINE_bool(
        "multihost", False, "One of many processes (SLURM, Open MPI: found out).", flag_values=values
    )


if __name__ == "__main__":
    define_flags()
    run(main)
