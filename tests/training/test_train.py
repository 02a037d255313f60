"""A run as people launch it: to its end, killed at any moment, stopped by a signal, with bad input."""

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

from difflid_jax import parallel
from difflid_jax.config import inputs
from difflid_jax.tasks import restorer
from difflid_jax.weights import store


def test_a_run_leaves_what_the_next_programs_need(tiny, undisturbed):
    assert {path.name for path in undisturbed.iterdir()} == {
        "config.json", "metrics.jsonl", "checkpoints", "sheets", "weights", "cache", "finished.json"
    }  # fmt: skip
    weights = store.read(undisturbed / "weights", "restorer")
    assert weights.metadata["prior"] == str(tiny.prior)
    assert weights.metadata["prior_sha256"] == store.read(tiny.prior, "unet").sha256
    assert weights.metadata["features"]["times"] == [0, 500]
    assert weights.metadata["config"] == json.loads((undisturbed / "config.json").read_text())
    assert weights.architecture["feature_channels"] == 32
    validation = tiny.lines(undisturbed, "validation")
    assert [line["step"] for line in validation] == [6, 12]
    best = max(validation, key=lambda line: line["psnr"])
    assert weights.metadata["step"] == best["step"]
    assert len(tiny.lines(undisturbed, "train")) == 12
    assert len(list((undisturbed / "sheets").glob("*.png"))) == 2


def test_a_finished_run_changes_nothing_unless_more_is_asked_for(
    tiny, undisturbed, tmp_path, capsys, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)

    def state():
        return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}

    before = state()
    assert tiny.train(workdir, "--config.data.workers=1") == 0
    assert state() == before
    with pytest.MonkeyPatch.context() as patch:  # another process, whose data are elsewhere
        patch.setattr(parallel, "bytes_of_all_processes", lambda mine: [b"\1", mine])
        assert tiny.train(workdir, "--config.data.train=/elsewhere") == 0
    assert state() == before
    assert capsys.readouterr().err.count(f"the run in {workdir} is finished; its weights are in") == 2
    # A test set is more: it is reported and scored, and nothing else happens.
    monkeypatch.setenv("HOME", str(tiny.prior.parent))
    given = (f"--config.data.test={tiny.prior.parent / 'validation'}", "--config.prior=~/prior")
    assert tiny.train(workdir, *given) == 0
    assert store.read(workdir / "weights", "restorer").metadata["prior"] == str(tiny.prior)
    assert "warning: 3 of 3 test images are also validation images" in capsys.readouterr().err
    (line,) = tiny.lines(workdir, "test")
    assert line["step"] == store.read(workdir / "weights", "restorer").metadata["step"]
    assert len(tiny.lines(workdir, "train")) == 12
    with pytest.raises(ValueError, match=r"holds the run of another config: config\.seed is 1, was 0"):
        tiny.train(workdir, "--config.seed=1")
    with pytest.raises(ValueError, match="the data set is not that of the checkpoint"):
        tiny.train(workdir, f"--config.data.train={tiny.prior.parent / 'validation'}")
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(ValueError, match=r"holds weights that a new run would replace, and no checkpoints"):
        tiny.train(workdir, "--config.seed=1")


def test_init_starts_from_other_weights_and_is_not_read_again_by_a_resumed_run(tiny, undisturbed):
    run = tiny.experiment(f"--config.init={undisturbed / 'weights'}")
    graph, params, init = restorer.first_network(run.network_on(32), run)
    found = store.tensors_of(nnx.merge(graph, params))
    weights = store.read(undisturbed / "weights", "restorer")
    assert init == weights.sha256 and found.keys() == weights.tensors.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, weights.tensors[name], err_msg=name)
    run = tiny.experiment("--config.init=/nowhere")
    restorer.first_network(run.network_on(32), run, resuming=True)


def stopped_at_random(tiny, workdir, given, generator):
    """Start the program, wait for a new step and a little longer, and send SIGTERM; status and stderr."""
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
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=240)[1]
    return process.returncode, err


def killed_while_saving(tiny, workdir, given):
    """Start the program in a workdir and kill it while a checkpoint is being written."""

    def unfinished():
        return any("orbax-checkpoint-tmp" in path.name for path in (workdir / "checkpoints").glob("*"))

    for _ in range(5):  # the checkpoint may be complete before the signal arrives
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


def kill_and_compare(tiny, workdir, undisturbed, given, kills, capsys):
    for _ in range(kills):
        killed_while_saving(tiny, workdir, given)
    code, err = stopped_at_random(tiny, workdir, given, random.Random())
    assert code == 128 + signal.SIGTERM, err
    command = shlex.split(err.rsplit("To resume: ")[1])
    assert command == ["python", "-m", "difflid_jax.train", *tiny.command(workdir, *given)[3:]]
    assert tiny.train(workdir, *given) == 0
    err = capsys.readouterr().err
    assert "resumed after step" in err and "damaged" not in err
    assert_same_run(tiny, workdir, undisturbed)


def test_killed_while_saving_and_stopped_it_ends_with_the_same_bits(tiny, tmp_path, undisturbed, capsys):
    kill_and_compare(tiny, tmp_path / "run", undisturbed, (), 1, capsys)


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bits(tiny, tmp_path, capsys):
    longer = ("--config.training.steps=120",)
    assert tiny.train(tmp_path / "undisturbed", *longer) == 0
    kill_and_compare(tiny, tmp_path / "run", tmp_path / "undisturbed", longer, 10, capsys)


@pytest.mark.parametrize("role", ["train", "validation"])
def test_a_damaged_image_is_named_before_the_first_step(tiny, tmp_path, role):
    shutil.copytree(tiny.prior.parent / role, tmp_path / "images")
    path = tmp_path / "images" / "hazy" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"config\.data\.{role}.*hazy/1\.png") as caught:
        tiny.train(tmp_path / "runs" / "run", f"--config.data.{role}={tmp_path / 'images'}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.data.crpo=16", "crpo"),
        ("--config.data.crop=wide", "wide"),
        ("--config.data.crop=64", "64×64 is larger"),
        ("--config.data.crop=17", "config.data.crop: expected a multiple of 2"),
        ("--config.features.times=(0,1000)", "features.times.*1000"),
        ("--config.data.train=/nowhere", "config.data.train.*/nowhere"),
        ("--config.data.train=", "config.data.train"),
        ("--config.prior=", "config.prior=FOLDER.*convert_weights.openai_ddpm"),
        ("--config.prior=/nowhere", "config.prior.*/nowhere"),
        ("--config.init=/nowhere", "/nowhere"),
        ("--config.init=haze", r"config\.init: .*haze.* the config asks for"),
        ("--config.network.widths=(8,17)", "config.network.widths"),
        ("--config.evaluation.lpips=True", "config.data.validation: .* is 28×24, .* at least 31; leave"),
        ("--config.evaluation.protocol=release_crops", "config.data.validation: .* at least 128; leave it"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tiny, tmp_path, flag, message):
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, OSError, AttributeError, KeyError, flags.Error), match=message) as caught:
        run = tiny.experiment(flag)
        inputs.check_given(run)
        restorer.train(run, workdir)
    assert not workdir.exists()
    assert len(str(caught.value)) < 700
