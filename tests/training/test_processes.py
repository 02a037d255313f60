"""Two real processes over gloo: one global batch, one run, every evaluation image scored once."""

import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

# A process that fails while the other one waits for it in a collective, as for a step's gradients.
FAILING = """
import jax
from difflid_jax import parallel
with parallel.processes("train", False):
    if jax.process_index() == 1:
        raise ValueError("hazy/7.png: the file is damaged")
    parallel.wait_for_all("a step")
"""


def together():
    """The environment of two processes of one run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [common | {"JAX_PROCESS_ID": str(number)} for number in range(2)]


def finish(processes):
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run as two processes, stopped through the second alone, and resumed as one."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    processes = [tiny.start(workdir, **environment) for environment in together()]
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.exists() and "validation" in metrics.read_text()):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    so_far = {kind: tiny.lines(workdir, kind) for kind in ("train", "validation")}
    so_far["saved"] = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert tiny.train(workdir) == 0
    return workdir, stopped, so_far


def test_a_signal_to_one_stops_both_at_the_same_step(runs):
    _, (codes, errors), so_far = runs
    assert codes == [143, 143], errors
    assert "in 2 processes" in errors[0] and "To resume: " in errors[0] and "To resume: " not in errors[1]
    assert 6 < so_far["train"][-1]["step"] == so_far["saved"] < 12


def test_they_train_what_one_process_trains_and_one_resumes(tiny, runs, undisturbed):
    workdir = runs[0]
    for what, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        two, alone = ([line[what] for line in tiny.lines(run, "train")] for run in (workdir, undisturbed))
        assert len(two) == len(alone) == 12
        np.testing.assert_allclose(two, alone, rtol=tolerance, err_msg=what)
    two, alone = tiny.trained(workdir), tiny.trained(undisturbed)
    # Adam divides by the root of a tiny second moment, which magnifies the rounding of the first steps.
    for name, value in alone.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_together_they_score_each_image_once(tiny, runs, undisturbed):
    (two,), alone = runs[2]["validation"], tiny.lines(undisturbed, "validation")[0]
    assert two["step"] == alone["step"] == 6
    # The mean over three images: one scored twice or left out would move it by tenths.
    assert two["psnr"] == pytest.approx(alone["psnr"], rel=1e-5)
    assert two["ssim"] == pytest.approx(alone["ssim"], rel=1e-5)


def test_processes_with_other_settings_or_images_refuse_to_start(tiny, tmp_path):
    other = ("--config.optimizer.learning_rate=1e-3", f"--config.data.train={tiny.prior.parent}/validation")
    processes = [
        tiny.start(tmp_path / "run", *given, **environment)
        for given, environment in zip(((), other), together(), strict=True)
    ]
    codes, errors = finish(processes)
    assert codes == [2, 2], errors
    for error in errors:
        assert "config.optimizer.learning_rate is 0.0002 in process 0, 0.001 in process 1" in error
        assert "train images is" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_one_that_fails_ends_all_with_its_line(tiny):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING],
            env=tiny.environment | environment,
            cwd=tiny.repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in together()
    ]
    codes, errors = finish(processes)
    # JAX alone ends process 0 after minutes, with the dump of its barrier and status 134.
    assert codes == [2, 2], errors
    assert errors[0] == "train: process 1 failed: hazy/7.png: the file is damaged\n"
    assert errors[1] == "train: hazy/7.png: the file is damaged\n"
