"""One training run, from its start or its last checkpoint to its weights.

Checks, decoded cache, checkpoints, signals, log and summary are the same for every `Task`.
"""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.data.pipeline import Batches
from difflid_jax.data.roles import report_roles
from difflid_jax.data.sources import DataSet
from difflid_jax.training import loop, throughput, workdir
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.interruption import Interruption
from difflid_jax.training.log import RunLog
from difflid_jax.training.loop import Diverged, Evaluate
from difflid_jax.training.spec import RunSpec
from difflid_jax.training.step import Loss, TrainState, initial_state, make_step


@dataclass(frozen=True, kw_only=True)
class Task:
    """What differs between the trainings of a restorer and of a diffusion prior.

    params: initial ones. frozen: parameters of a frozen network on the mesh, the loss's second argument.
    arrays: shapes and types of an element's arrays, by name. data: 'train' and, if there are any,
    'validation' and 'test'; open_cached opens the training data through a decoded cache in a folder, or
    without one (None). multiple: the crop's side is a multiple of it. inputs: hashes of the other inputs that
    a resumed run must find unchanged, as {'prior_sha256': …}. init: hash of the weights that it starts from.
    metric: the score that decides the best checkpoint, `highest` or lowest; uses_best: the final weights are
    its, not the last ones. evaluate: on the validation images, test: on the test images at the end, if any.
    save: (folder, params, step, test scores) writes the weights. summary: name → text, for the first lines.
    """

    params: Any
    loss: Loss
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    data: Mapping[str, DataSet]
    open_cached: Callable[[Path | None], DataSet]
    multiple: int
    metric: str
    highest: bool
    save: Callable[[Path, Any, int, Mapping[str, float]], None]
    frozen: Any = None
    evaluate: Evaluate | None = None
    test: Evaluate | None = None
    uses_best: bool = True
    inputs: Mapping[str, str] = field(default_factory=dict)
    init: str = ""
    summary: Mapping[str, str] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Number of training elements."""
        return len(self.data["train"])


def run(program: str, spec: RunSpec, prepare: Callable[[Mesh, bool], Task], folder: Path) -> int:
    """Train until the schedule or the time allowed ends, or a signal arrives; return the exit status.

    prepare: (mesh, whether a run is resumed) → the task, with everything that it needs opened and checked.
    A finished run is left as it is. Raises ValueError or OSError for what cannot be trained, before anything
    is written.
    """
    finished = workdir.is_finished(folder, spec.ending)
    # As process 0 sees it, whose paths were recorded: those of others may differ.
    if parallel.bytes_of_all_processes(bytes([finished]))[0] == b"\1":
        _say(f"{program}: the run in {folder} is finished; its weights are in {folder / workdir.WEIGHTS}")
        return 0
    resuming = workdir.is_resumed(folder, spec.differences)
    mesh = parallel.make_mesh()
    parallel.check_batch_size(mesh, spec.batch_size)
    task = prepare(mesh, resuming)
    if spec.crop.size % task.multiple:
        raise ValueError(
            f"config.data.crop: expected a multiple of {task.multiple} for this network, "
            f"found {spec.crop.size}"
        )
    _batches(spec, task.data["train"], mesh)  # refuses images smaller than the crop
    parallel.check_agreement(
        {
            **spec.shared_fields,
            "has checkpoints": resuming,
            **{f"{role} images": data.fingerprint for role, data in task.data.items()},
            **task.inputs,
            "init": task.init,
        }
    )
    state = initial_state(task.params, spec.optimizer(task.elements), spec.seed)
    # Room for the latest checkpoints, the best one, and one that is being written.
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) * (spec.keep + 2)
    workdir.check(folder, needed)
    cache = None if spec.cache == "off" else Path(spec.cache or folder / "cache").expanduser()
    with workdir.restored_on_refusal(cache or folder):
        batches = _batches(spec, task.open_cached(cache), mesh)
        workdir.check(folder, needed)  # next to the cache, which now takes its room
    checkpoints = Checkpoints(
        folder / workdir.CHECKPOINTS, keep=spec.keep, metric=task.metric, highest=task.highest
    )
    try:
        state, meta = _start(spec, task, parallel.replicate(mesh, state), checkpoints, batches)
        workdir.begin(folder, spec.fields)
        if jax.process_index() == 0 and (report := report_roles(task.data, cache)):
            _say(report)
        _say(_summary(spec, task, mesh, int(state.step), folder))
        return _train(program, spec, task, folder, mesh, state, meta, batches, checkpoints)
    except BaseException as error:
        # Before closing, which would wait for the other processes.
        parallel.end_all(program, error)
        raise
    finally:
        batches.close()
        checkpoints.close()


def _train(
    program: str,
    spec: RunSpec,
    task: Task,
    folder: Path,
    mesh: Mesh,
    state: TrainState,
    meta: Mapping[str, Any],
    batches: Batches,
    checkpoints: Checkpoints,
) -> int:
    step = _lower(spec, task, mesh, state)
    compiled = step.compile()
    log = RunLog(
        folder,
        first_step=int(state.step),
        total_steps=spec.total_steps(task.elements),
        evaluated=meta.get("evaluated", -1),
        tensorboard=spec.tensorboard,
        primary=jax.process_index() == 0,
    )
    try:
        # Before this, nothing is lost if a signal ends the program at once.
        with Interruption() as interruption:
            outcome = loop.run(
                spec.loop(task.elements, flops=throughput.flops(step), peak=throughput.peak()),
                compiled,
                state,
                task.frozen,
                batches,
                mesh=mesh,
                checkpoints=checkpoints,
                log=log,
                interruption=interruption,
                meta=meta,
                evaluate=task.evaluate,
                profile_folder=folder / "profile",
            )
            if outcome.signal or not _finish(spec, task, folder, outcome, checkpoints, log, interruption):
                log.close()
                return _stopped(program, outcome.signal or interruption.signal, folder)
    except Diverged as error:
        log.say(f"{program}: {error}")
        return 1
    finally:
        log.close()
    return 0


def _finish(
    spec: RunSpec,
    task: Task,
    folder: Path,
    outcome: loop.Outcome,
    checkpoints: Checkpoints,
    log: RunLog,
    interruption: Interruption,
) -> bool:
    """Write the weights and score the test images; False if interrupted while scoring."""
    params, step = outcome.state.eval_params, outcome.step
    best = checkpoints.best() if task.uses_best else None
    if best is not None and best != step:
        params, step = checkpoints.restore(best, outcome.state).state.eval_params, best
    weights = folder / workdir.WEIGHTS
    _save(task, weights, params, step, {})
    if task.test is not None:
        result = task.test(params, interruption.ends_evaluation)
        if result is None:
            return False
        scores, sheet = result
        log.evaluation(step, scores, sheet, kind="test")
        _save(task, weights, params, step, scores)
    if outcome.step == spec.total_steps(task.elements):  # and not the end of the time allowed
        workdir.finish(folder, spec.ending)
    log.say(f"weights of step {step:,}: {weights}")
    return True


def _save(task: Task, folder: Path, params: Any, step: int, scores: Mapping[str, float]) -> None:
    if jax.process_index() == 0:
        task.save(folder, params, step, scores)


def _batches(spec: RunSpec, images: DataSet, mesh: Mesh) -> Batches:
    return Batches(
        images,
        spec.crop,
        spec.batch_size,
        haze=spec.haze,
        later=[(first, part.crop, part.haze) for first, part in spec.later],
        seed=spec.seed,
        workers=spec.workers,
        sharding=parallel.batch_sharded(mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _start(
    spec: RunSpec, task: Task, state: TrainState, checkpoints: Checkpoints, batches: Batches
) -> tuple[TrainState, dict[str, Any]]:
    """State and `meta` of the latest checkpoint, with the batches at its position, or those of a new run."""
    restored = checkpoints.restore_latest(state)
    if restored is None:
        return state, {"config": spec.fields, "fingerprint": spec.fingerprint, **task.inputs}
    for name, now in task.inputs.items():
        if (before := restored.meta.get(name, now)) != now:
            raise ValueError(
                f"config.{name.removesuffix('_sha256')}: the run was started with the weights "
                f"{before[:12]}…, but these are {now[:12]}…; give the same, or another workdir"
            )
    batches.set_state(restored.data)
    return restored.state, restored.meta


def _lower(spec: RunSpec, task: Task, mesh: Mesh, state: TrainState) -> jax.stages.Lowered:
    """The step, traced for its inputs and ready to be compiled."""
    sharding = parallel.batch_sharded(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((spec.batch_size, *array.shape), array.dtype, sharding=sharding)
        for name, array in task.arrays.items()
    }
    step = jax.jit(
        make_step(task.loss, spec.optimizer(task.elements)),
        donate_argnums=0,
        out_shardings=parallel.replicated(mesh),
    )
    return step.lower(state, task.frozen, batch)


def _summary(spec: RunSpec, task: Task, mesh: Mesh, first: int, folder: Path) -> str:
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    lines = {
        "run": spec.fingerprint + (f", resumed after step {first:,}" if first else ""),
        "workdir": str(folder),
        **task.summary,
        "steps": f"{spec.total_steps(task.elements):,} of {spec.batch_size} crops, "
        f"{spec.steps_per_epoch(task.elements):,} per epoch",
        "devices": f"{mesh.size} × {jax.devices()[0].device_kind}{processes}",
    }
    return "\n".join(f"{name:8} {line}" for name, line in lines.items())


def _stopped(program: str, signal: int, folder: Path) -> int:
    command = shlex.join(["python", "-m", f"difflid_jax.{program}", *sys.argv[1:]])
    _say(f"{program}: stopped by signal {signal}; the run is saved in {folder}. To resume: {command}")
    return 128 + signal


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)
