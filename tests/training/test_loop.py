"""The loop on a problem small enough to check everything: a line fitted to drawn points."""

import json
import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax import parallel
from difflid_jax.training.checkpoints import Checkpoints
from difflid_jax.training.interruption import Interruption
from difflid_jax.training.log import RunLog
from difflid_jax.training.loop import Diverged, LoopSpec, run
from difflid_jax.training.optimizer import OptimizerSpec
from difflid_jax.training.step import initial_state, make_step

OPTIMIZER = OptimizerSpec(steps=40, halve_every=10, learning_rate=0.2, ema=0.9)


class Points:
    """Batches that are a function of their number; step `poison` and those after it hold a NaN."""

    def __init__(self, poison=range(0)):
        self.next, self.poison = 0, poison

    def __next__(self):
        x = np.random.default_rng(self.next).normal(size=(8, 3)).astype(np.float32)
        if self.next in self.poison:
            x[0, 0] = np.nan
        self.next += 1
        return {"x": jnp.asarray(x)}

    def get_state(self):
        return {"next": self.next}


def loss(params, frozen, batch, key, step):
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = batch["x"] @ params["w"] - (batch["x"] + noise) @ frozen
    return jnp.mean(jnp.abs(error)), {"psnr": -jnp.log(jnp.mean(jnp.square(error)))}


FROZEN = jnp.array([1.0, -2.0, 0.5])
STEP = jax.jit(make_step(loss, OPTIMIZER), donate_argnums=0)


def train(workdir, *, poison=range(0), evaluate=None, batches=None, metric="psnr", silent=False, **spec):
    """Start or go on in `workdir`; the outcome and what the log says."""
    mesh = parallel.make_mesh()
    spec = LoopSpec(**{"steps": 40, "batch_size": 8, "log_every": 5, "checkpoint_every": 10} | spec)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=2, metric=metric)
    state = parallel.replicate(mesh, initial_state({"w": jnp.zeros(3)}, OPTIMIZER, seed=7))
    batches, meta = batches or Points(poison), {}
    if (restored := checkpoints.restore_latest(state)) is not None:
        state, meta, batches.next = restored.state, restored.meta, restored.data["next"]
    log = RunLog(
        workdir, first_step=int(state.step), total_steps=spec.steps, evaluated=meta.get("evaluated", -1),
        tensorboard=False, primary=not silent,
    )  # fmt: skip
    try:
        with Interruption() as interruption:
            outcome = run(
                spec, STEP, state, FROZEN, batches, mesh=mesh, checkpoints=checkpoints, log=log,
                interruption=interruption, meta=meta, evaluate=evaluate, profile_folder=workdir / "profile",
            )  # fmt: skip
    finally:
        log.close()
        checkpoints.close()
    return outcome


def lines(workdir, kind="train"):
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if line["kind"] == kind]


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return train(workdir).state, lines(workdir)


def test_it_learns_and_says_so(undisturbed):
    state, logged = undisturbed
    assert np.abs(np.asarray(state.params["w"]) - np.asarray(FROZEN)).max() < 0.5
    assert [line["step"] for line in logged] == list(range(5, 41, 5))
    assert logged[-1]["loss"] < logged[0]["loss"] / 3
    assert {"psnr", "images_per_second", "seconds_left", "learning_rate", "gradient_norm"} <= logged[0].keys()
    assert logged[-1]["learning_rate"] == pytest.approx(0.2 * 0.5**3)


def test_a_signal_saves_and_the_resumed_run_ends_with_the_same_bits(tmp_path, undisturbed):
    class Signalling(Points):
        def __next__(self):
            if self.next == 17:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    first = train(tmp_path, batches=Signalling())
    assert first.signal == signal.SIGTERM and first.step < 40
    second = train(tmp_path)
    assert second.signal == 0 and second.step == 40
    assert same(second.state, undisturbed[0])
    # The means of steps 16 to 20 too, before and after the signal.
    constant = ("step", "loss", "psnr", "gradient_norm", "learning_rate", "skipped")
    pick = lambda logged: [[line[name] for name in constant] for line in logged]  # noqa: E731
    assert first.step % 5 and pick(lines(tmp_path)) == pick(undisturbed[1])


def test_input_that_ends_with_the_signal_is_no_error(tmp_path):
    class Ending(Points):
        def __next__(self):
            if self.next == 12:
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("the workers are gone")
            return super().__next__()

    outcome = train(tmp_path, batches=Ending())
    assert (outcome.step, outcome.signal) == (12, signal.SIGINT)
    assert (tmp_path / "checkpoints" / "12").is_dir()

    class Failing(Points):
        def __next__(self):
            raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path / "other", batches=Failing())


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_bad_steps_change_nothing_and_are_counted(tmp_path):
    state = initial_state({"w": jnp.zeros(3)}, OPTIMIZER, seed=7)
    batches = Points(poison=range(1, 3))
    state, _ = STEP(state, FROZEN, next(batches))
    kept = jax.tree.map(jnp.copy, (state.params, state.optimizer, state.ema))
    for _ in range(2):
        state, metrics = STEP(state, FROZEN, next(batches))
    assert same((state.params, state.optimizer, state.ema), kept)
    assert int(metrics["bad_steps"]) == 2 and int(state.step) == 3
    state, metrics = STEP(state, FROZEN, next(batches))
    assert int(metrics["bad_steps"]) == 0 and int(metrics["skipped"]) == 2
    assert not same(state.params, kept[0])

    outcome = train(tmp_path, poison=range(6, 9), max_bad_steps=4)
    assert outcome.step == 40 and lines(tmp_path)[-1]["skipped"] == 3


def test_too_many_bad_steps_stop_the_run_and_name_the_last_checkpoint(tmp_path):
    with pytest.raises(Diverged, match=r"4 steps in a row, up to step 27; last good checkpoint: .*/20$"):
        train(tmp_path, poison=range(23, 40), max_bad_steps=4)
    last = lines(tmp_path)[-1]
    assert last["step"] == 27 and last["bad_steps"] == 4


def test_an_evaluation_that_fails_costs_no_step(tmp_path):
    def fails(params, ends):
        raise ValueError("too large an image")

    with pytest.raises(ValueError, match="too large"):
        train(tmp_path, evaluate=fails, evaluate_every=15)
    seen = []
    train(tmp_path, evaluate=lambda params, ends: seen.append(1) or ({"psnr": 1.0}, None), evaluate_every=15)
    assert lines(tmp_path, "validation")[0]["step"] == 15 and len(seen) == 3


def test_no_checkpoint_is_made_of_a_run_of_bad_steps(tmp_path):
    train(tmp_path, poison=range(18, 22), max_bad_steps=9, steps=25)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "25"]


def test_a_disk_that_fills_up_ends_the_run_and_costs_no_checkpoint(tmp_path, undisturbed):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Points):
        def __next__(self):
            if self.next == 25:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
            return super().__next__()

    try:
        # Silent, because the limit holds for the files that tests write their output into, too.
        with pytest.raises(OSError, match=r"a checkpoint cannot be written.*resumes from step [12]0"):
            train(tmp_path, batches=Filling(), silent=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(train(tmp_path).state, undisturbed[0])


def test_the_best_checkpoint_is_kept_and_found_after_a_restart(tmp_path):
    scores = iter([1.0, 9.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])

    def evaluate(params, interrupted):
        return {"psnr": next(scores)}, np.zeros((8, 8, 3), np.uint8)

    train(tmp_path, evaluate=evaluate, evaluate_every=5)
    assert [(line["step"], line["psnr"]) for line in lines(tmp_path, "validation")][1] == (10, 9.0)
    assert (tmp_path / "sheets" / "step_000010.png").exists()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, metric="psnr")
    assert checkpoints.best() == 10
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [10, 35, 40]
    checkpoints.close()


def test_an_evaluation_that_was_interrupted_is_made_up_for(tmp_path):
    def interrupted(params, should_stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert should_stop()
        return None

    outcome = train(tmp_path, evaluate=interrupted, evaluate_every=20)
    assert (outcome.step, outcome.signal) == (20, signal.SIGINT)
    seen = []

    def evaluate(params, should_stop):
        seen.append(np.asarray(params["w"]).copy())
        return {"psnr": float(-len(seen))}, None

    outcome = train(tmp_path, evaluate=evaluate, evaluate_every=20)
    assert [line["step"] for line in lines(tmp_path, "validation")] == [20, 40]
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.best() == 20
    checkpoints.close()
    assert len(seen) == 2 and (seen[1] == np.asarray(outcome.state.ema["w"])).all()


def test_a_finished_run_has_nothing_left_to_do(tmp_path, undisturbed):
    train(tmp_path)

    class None_:
        def __next__(self):
            raise AssertionError("no further batch")

        def get_state(self):
            return {}

    assert same(train(tmp_path, batches=None_()).state, undisturbed[0])


def test_minutes_end_a_run_early_with_a_checkpoint_and_an_evaluation(tmp_path):
    outcome = train(
        tmp_path,
        steps=10**6,
        minutes=0.005,
        evaluate=lambda params, _: ({"psnr": 1.0}, None),
        checkpoint_every=10**6,
    )
    assert outcome.signal == 0 and 0 < outcome.step < 10**6
    assert [line["step"] for line in lines(tmp_path, "validation")] == [outcome.step]
    assert (tmp_path / "checkpoints" / str(outcome.step)).is_dir()


def test_profile_is_written(tmp_path):
    train(tmp_path, steps=5, profile_steps="2:30")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
