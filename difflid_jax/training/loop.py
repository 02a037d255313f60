"""The training loop: steps, late metrics, evaluations, checkpoints, and the ways it ends.

The host stays ahead of the device: it dispatches a step, then reads the metrics of the one two steps before.
Nothing else in the loop waits for the device, except evaluations and checkpoints.
"""

import dataclasses
import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.training import throughput
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.interruption import Interruption
from difflid_jax.training.log import RunLog
from difflid_jax.training.step import TrainState
from difflid_jax.weights import schema

_IN_FLIGHT = 2  # steps dispatched after the one whose metrics are read
_TIME_IS_UP = 1  # a reason to stop; the others are numbers of signals

# evaluate(params, interrupted) → (mean scores, contact sheet), or None if it was interrupted
Evaluate = Callable[[Any, Callable[[], bool]], tuple[dict[str, float], np.ndarray | None] | None]


class Diverged(Exception):
    """The loss or its gradients were not finite for too many steps in a row."""


@dataclasses.dataclass(frozen=True)
class LoopSpec:
    """The length of a run and of its intervals; all in steps, except `minutes` (0: no limit).

    evaluate_every: 0 for only at the end. profile_steps: 'first:last', the steps of a JAX profile, or ''.
    flops: operations of one step; peak: of the devices in one second; 0 if unknown.
    """

    steps: int
    batch_size: int
    minutes: float = 0.0
    log_every: int = 50
    evaluate_every: int = 0
    checkpoint_every: int = 1000
    max_bad_steps: int = 10
    profile_steps: str = ""
    flops: float = 0.0
    peak: float = 0.0

    def __post_init__(self):
        least = {"log_every": 1, "checkpoint_every": 1, "max_bad_steps": 1, "evaluate_every": 0, "minutes": 0}
        for name, lowest in least.items():
            schema.check_least(f"training.{name}", getattr(self, name), lowest)
        if self.profile_steps and not 1 <= self.profile[0] <= self.profile[1]:
            raise ValueError(
                "training.profile_steps: expected 'first:last' with 1 ≤ first ≤ last, "
                f"found {self.profile_steps!r}"
            )

    @property
    def profile(self) -> tuple[int, int]:
        """The first and the last step to profile; (0, 0) for none."""
        first, _, last = self.profile_steps.partition(":")
        return (int(first), int(last)) if first.isdecimal() and last.isdecimal() else (0, 0)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: `signal` is the number of the signal that stopped it, 0 if it completed."""

    state: TrainState
    step: int
    signal: int


def run(
    spec: LoopSpec,
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    frozen: Any,
    batches: Iterator[Mapping[str, jax.Array]],
    *,
    mesh: Mesh,
    checkpoints: Checkpoints,
    log: RunLog,
    interruption: Interruption,
    meta: Mapping[str, Any],
    evaluate: Evaluate | None = None,
    profile_folder: Path | None = None,
) -> Outcome:
    """Train from `state` until the schedule or the time allowed ends, or a signal arrives.

    `step` is compiled and may reuse the buffers of `state`; `batches` has `get_state()`. `meta` goes into
    every checkpoint, see `_Saver`. All processes of a run stop at the same step, whichever received the
    signal. Raises Diverged if `max_bad_steps` updates in a row were skipped, OSError if a checkpoint cannot
    be written.
    """
    done, stop = int(state.step), 0
    deadline = time.monotonic() + 60 * spec.minutes if spec.minutes else math.inf
    progress = _Progress(spec, log, checkpoints, meta.get("unlogged", []))
    saver = _Saver(checkpoints, batches, progress, meta, done)
    profile = _Profile(spec.profile, profile_folder)
    while True:
        ending = done == spec.steps or stop == _TIME_IS_UP
        due = ending or (spec.evaluate_every and done and done % spec.evaluate_every == 0)
        if evaluate is not None and due and saver.evaluated != done and stop in (0, _TIME_IS_UP):
            saver.save(done, state, last=ending)  # so that a failing evaluation costs no step
            checkpoints.wait()
            result = evaluate(state.eval_params, interruption.ends_evaluation)
            if result is None:
                stop = interruption.signal or signal.SIGTERM
            else:
                log.evaluation(done, *result)
                saver.evaluated = done
                saver.save(done, state, result[0], last=ending)
        if ending or stop or (done and done % spec.checkpoint_every == 0):
            saver.save(done, state, last=bool(ending or stop))
        if ending or stop:
            break
        batch = _next(batches, interruption)
        if batch is None:
            stop = interruption.signal
            continue
        profile.before(done + 1)
        state, metrics = step(state, frozen, batch)
        done += 1
        late = time.monotonic() > deadline
        reason = parallel.greatest(mesh, interruption.signal or (_TIME_IS_UP if late else 0))
        stop = progress.sent(done, metrics, reason)
        profile.after(done, metrics)
    profile.end()
    checkpoints.wait()
    return Outcome(state, done, 0 if stop == _TIME_IS_UP else int(stop))


def _next(batches: Iterator[Mapping[str, jax.Array]], interruption: Interruption) -> Any | None:
    """The next batch; None if the input ended because of a signal."""
    try:
        return next(batches)
    except Exception:
        # Ctrl-C also reaches the worker processes of the input, and may end them first.
        if not interruption.signal or jax.process_count() > 1:
            raise
        return None


class _Saver:
    """Writes the checkpoints of a run that starts or resumes at `step`.

    Each holds `meta` with 'evaluated', the last evaluated step, and 'unlogged', the metrics of the steps
    since the last line of the log.
    """

    def __init__(
        self, checkpoints: Checkpoints, batches: Any, progress: "_Progress", meta: Mapping, step: int
    ):
        self._checkpoints, self._batches, self._progress = checkpoints, batches, progress
        self._meta = meta
        self._saved = step or -1
        self.evaluated = meta.get("evaluated", -1)

    def save(
        self, step: int, state: TrainState, scores: dict[str, float] | None = None, *, last: bool
    ) -> None:
        """Save `step`, unless that is done or, before the `last` step, its update was skipped.

        During bad steps the checkpoint from before them is kept.
        """
        if self._saved == step and scores is None:
            return
        self._progress.catch_up()
        if self._progress.bad_steps == 0 or last:
            meta = {**self._meta, "evaluated": self.evaluated, "unlogged": self._progress.unlogged()}
            self._checkpoints.save(step, state, self._batches.get_state(), meta, scores)
            self._saved = step
        self._progress.paused()


class _Progress:
    """Keeps the host a few steps ahead of the device, and reads and logs the metrics late."""

    def __init__(self, spec: LoopSpec, log: RunLog, checkpoints: Checkpoints, unlogged: list[dict]):
        self._spec, self._log, self._checkpoints = spec, log, checkpoints
        self._sent: deque = deque()
        self._window: list[dict[str, Any]] = list(unlogged)
        self._timed_from: tuple[int, float] | None = None
        self._seconds_per_step = math.nan
        self._reason = 0
        self.bad_steps = 0

    def sent(self, step: int, metrics: dict[str, jax.Array], reason: jax.Array | int) -> int:
        """Queue a dispatched step; return the greatest reason to stop of the steps read so far."""
        if isinstance(reason, int):
            self._reason = max(self._reason, reason)
        self._sent.append((step, metrics, reason))
        while len(self._sent) > _IN_FLIGHT:
            self._read()
        return self._reason

    def catch_up(self) -> None:
        """Wait for all dispatched steps."""
        while self._sent:
            self._read()

    def unlogged(self) -> list[dict[str, float]]:
        """The metrics since the last report."""
        return [{name: float(value) for name, value in row.items()} for row in jax.device_get(self._window)]

    def paused(self) -> None:
        """Leave a pause out of the measured time per step."""
        self._timed_from = None

    def _read(self) -> None:
        step, metrics, reason = self._sent.popleft()
        self._window.append(metrics)
        self.bad_steps = int(metrics["bad_steps"])
        now = time.monotonic()
        if step % self._spec.log_every == 0 or step == self._spec.steps:
            self._report(step, now)
        if self.bad_steps >= self._spec.max_bad_steps:
            if self._window:
                self._report(step, now)
            self._checkpoints.wait()
            raise Diverged(
                f"the loss or its gradients were not finite for {self.bad_steps} steps in a row, up to step "
                f"{step}; last good checkpoint: {self._checkpoints.latest() or 'none'}"
            )
        if self._timed_from is None:
            self._timed_from = (step, now)
        self._reason = max(self._reason, int(reason))

    def _report(self, step: int, now: float) -> None:
        rows = jax.device_get(self._window)
        self._window = []
        values = {name: _mean([row[name] for row in rows]) for name in rows[0]}
        values |= {name: rows[-1][name].item() for name in ("learning_rate", "bad_steps", "skipped")}
        if self._timed_from is not None and step > self._timed_from[0]:
            self._seconds_per_step = (now - self._timed_from[1]) / (step - self._timed_from[0])
            self._timed_from = (step, now)
        seconds = self._seconds_per_step
        values["images_per_second"] = self._spec.batch_size / seconds
        values["seconds_left"] = seconds * (self._spec.steps - step)
        if self._spec.flops and self._spec.peak:
            values["share_of_peak"] = self._spec.flops / seconds / self._spec.peak
        if memory := throughput.peak_memory():
            values["peak_memory_gib"] = memory / 2**30
        self._log.training(step, values)


class _Profile:
    """A JAX profile of the steps first … last, written to `folder`."""

    def __init__(self, span: tuple[int, int], folder: Path | None):
        self._first, self._last = span if folder is not None else (0, 0)
        self._folder = folder
        self._running = False

    def before(self, step: int) -> None:
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        if step == self._last and self._running:
            jax.block_until_ready(metrics)
            self.end()

    def end(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def _mean(values: list[Any]) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = [float(value) for value in values if np.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
