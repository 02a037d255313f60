"""The program as people run it: to its end, killed at any moment, told to stop, on bad input."""

import json
import random
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
from absl import flags
from flax import nnx

from difflid_jax import train
from difflid_jax.config import experiment, inputs
from difflid_jax.weights import store


@pytest.fixture(scope="module")
def experiment_of(tiny):
    """Flags → the experiment as the program would get it."""

    def read(*given):
        values = flags.FlagValues()
        train.define_flags(values)
        arguments = ["train", f"--config={tiny.config}", *given]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", arguments)  # where config_flags looks for the fields
            values(arguments)
        return experiment.resolve(values.config)

    return read


def test_a_run_leaves_what_the_next_programs_need(tiny, undisturbed):
    assert {path.name for path in undisturbed.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoints", "sheets", "weights", "cache"
    }  # fmt: skip
    weights = store.read(undisturbed / "weights", "restorer")
    assert weights.metadata["prior"] == str(tiny.prior)
    assert weights.metadata["prior_sha256"] == store.read(tiny.prior, "unet").sha256
    assert weights.metadata["features"]["times"] == [0, 500]
    assert weights.metadata["config"] == json.loads((undisturbed / "config.json").read_text())
    assert weights.architecture["feature_channels"] == 32
    validation = tiny.lines(undisturbed, "validation")
    assert [line["step"] for line in validation] == [10, 20]
    best = max(validation, key=lambda line: line["psnr"])
    assert weights.metadata["step"] == best["step"]
    assert len(tiny.lines(undisturbed, "train")) == 20
    assert len(list((undisturbed / "sheets").glob("*.png"))) == 2


def test_init_starts_from_other_weights(experiment_of, undisturbed):
    run = experiment_of(f"--config.init={undisturbed / 'weights'}")
    graph, params = train._first_network(run.network_on(32), run)
    found = store.tensors_of(nnx.merge(graph, params))
    expected = store.read(undisturbed / "weights", "restorer").tensors
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_that_goes_on_does_without_its_init(experiment_of):
    run = experiment_of("--config.init=/nowhere")
    train._first_network(run.network_on(32), run, resuming=True)
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        train._first_network(run.network_on(32), run)


def interrupted_at_random(tiny, workdir, given, number, generator):
    """Start the program, wait for a step that is new, and a little longer, and send a signal; its result."""
    seen = len(tiny.lines(workdir, "train")) if (workdir / "metrics.jsonl").exists() else 0
    process = tiny.start(workdir, *given)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (workdir / "metrics.jsonl").exists():
            steps = (workdir / "metrics.jsonl").read_text().count('"kind": "train"')
            if 0 < steps != seen:
                break
        time.sleep(0.01)
    time.sleep(generator.uniform(0, 0.15))
    process.send_signal(number)
    err = process.communicate(timeout=240)[1]
    return process.returncode, err


def killed_while_saving(tiny, workdir, given):
    """Start the program in a new workdir and kill it while a checkpoint is being written."""

    def unfinished():
        return any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*"))

    for _ in range(5):  # the checkpoint may be complete before the signal is there
        process = tiny.start(workdir, *given)
        while process.poll() is None and not unfinished():
            time.sleep(0.003)
        process.kill()
        err = process.communicate(timeout=240)[1]
        assert process.returncode == -signal.SIGKILL, err
        if unfinished():
            return
    raise AssertionError("never killed while a checkpoint was being written")


def assert_same_run(tiny, workdir, undisturbed):
    for kind in ("train", "validation"):
        lines, expected = tiny.lines(workdir, kind), tiny.lines(undisturbed, kind)
        for line in lines + expected:
            line.pop("images_per_second", None), line.pop("seconds_left", None)
        assert lines == expected
    trained, expected = tiny.trained(workdir), tiny.trained(undisturbed)
    assert trained.keys() == expected.keys()
    for name, value in trained.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def kill_and_compare(tiny, workdir, undisturbed, given, kills):
    killed_while_saving(tiny, workdir, given)
    generator = random.Random()
    for _ in range(kills - 1):
        code, err = interrupted_at_random(tiny, workdir, given, signal.SIGKILL, generator)
        assert code == -signal.SIGKILL, err
    code, err = interrupted_at_random(tiny, workdir, given, signal.SIGTERM, generator)
    assert code == 128 + signal.SIGTERM, err
    command = shlex.split(err.rsplit("To resume: ")[1])
    assert command[:3] == ["python", "-m", "difflid_jax.train"]
    assert command[3:] == tiny.command(workdir, *given)[3:]
    result = tiny.run(workdir, *given)
    assert result.returncode == 0, result.stderr
    assert "resumed after step" in result.stderr and "damaged" not in result.stderr
    assert_same_run(tiny, workdir, undisturbed)


def test_killed_three_times_and_stopped_once_it_ends_with_the_same_bits(tiny, tmp_path, undisturbed):
    kill_and_compare(tiny, tmp_path / "run", undisturbed, (), kills=3)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_bits(tiny, tmp_path):
    longer = ("--config.training.steps=120",)
    assert tiny.run(tmp_path / "undisturbed", *longer).returncode == 0
    kill_and_compare(tiny, tmp_path / "run", tmp_path / "undisturbed", longer, kills=20)


@pytest.mark.parametrize("role", ["train", "validation"])
def test_a_damaged_picture_is_named_before_the_first_step(tiny, experiment_of, tmp_path, role):
    shutil.copytree(tiny.prior.parent / role, tmp_path / "pictures")
    path = tmp_path / "pictures" / "hazy" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    run = experiment_of(f"--config.data.{role}={tmp_path / 'pictures'}")
    with pytest.raises(ValueError, match=rf"config\.data\.{role}.*hazy/1\.png") as caught:
        train.train(run, tmp_path / "runs" / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.data.crpo=16", "crpo"),
        ("--config.data.crop=wide", "wide"),
        ("--config.data.crop=64", "64×64 is larger"),
        ("--config.data.crop=17", "config.data.crop must be a multiple of 2"),
        ("--config.features.times=(0,1000)", "features.times.*1000"),
        ("--config.data.train=/nowhere", "config.data.train.*/nowhere"),
        ("--config.data.train=", "config.data.train"),
        ("--config.prior=", "config.prior=FOLDER.*convert_weights.openai_ddpm"),
        ("--config.prior=/nowhere", "config.prior.*/nowhere"),
        ("--config.init=/nowhere", "/nowhere"),
        ("--config.init=haze", r"config\.init: .*haze.* the config asks for"),
        ("--config.optimizer.schedule=step", "config.optimizer.schedule: expected one of.*'step'"),
        ("--config.training.steps=-1", "config.training.steps: expected at least 0, found -1"),
        ("--config.data.haze.beta=(2.0,1.0)", "config.data.haze.beta: expected two"),
        ("--config.evaluation.protocol=best", "config.evaluation.protocol: expected one of"),
        ("--config.network.widths=(8,17)", "config.network.widths"),
        ("--config.evaluation.lpips=True", "config.data.validation: .* is 28×24, .* at least 31; leave"),
        ("--config.data.batch_size=0", "config.data.batch_size: expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(experiment_of, tmp_path, capsys, flag, said):
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, OSError, AttributeError, KeyError, flags.Error), match=said) as caught:
        run = experiment_of(flag)
        inputs.check_given(run)
        train.train(run, workdir)
    assert not workdir.exists()
    assert len(str(caught.value)) < 700
