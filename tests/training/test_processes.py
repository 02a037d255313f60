"""Two real processes over gloo: one global batch, one run, every evaluation picture scored once."""

import signal
import socket
import time

import numpy as np
import pytest


def launch(tiny, workdir):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    return [tiny.start(workdir, **common, JAX_PROCESS_ID=str(number)) for number in range(2)]


def finish(processes):
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run as two processes, told to stop through the second only, and gone on with as one."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    processes = launch(tiny, workdir)
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.exists() and "validation" in metrics.read_text()):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    stopped = finish(processes)
    so_far = {kind: tiny.lines(workdir, kind) for kind in ("train", "validation")}
    so_far["saved"] = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return workdir, stopped, so_far, tiny.run(workdir)


def test_a_signal_to_one_stops_both_at_the_same_step(runs):
    _, (codes, said), so_far, _ = runs
    assert codes == [143, 143], said
    assert "in 2 processes" in said[0] and "To resume: " in said[0] and "To resume: " not in said[1]
    assert 10 < so_far["train"][-1]["step"] == so_far["saved"] < 20


def test_they_train_what_one_process_trains_and_one_goes_on(tiny, runs, undisturbed):
    workdir, _, _, gone_on = runs
    assert gone_on.returncode == 0, gone_on.stderr
    assert "resumed after step" in gone_on.stderr and "in 2 processes" not in gone_on.stderr
    for what, tolerance in (("loss", 1e-5), ("gradient_norm", 1e-4)):
        two, alone = ([line[what] for line in tiny.lines(run, "train")] for run in (workdir, undisturbed))
        assert len(two) == len(alone) == 20
        np.testing.assert_allclose(two, alone, rtol=tolerance, err_msg=what)
    two, alone = tiny.trained(workdir), tiny.trained(undisturbed)
    # Adam divides by the root of a tiny second moment, which magnifies the rounding of the first steps.
    for name, value in alone.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_together_they_score_each_picture_once(tiny, runs, undisturbed):
    (two,), alone = runs[2]["validation"], tiny.lines(undisturbed, "validation")[0]
    assert two["step"] == alone["step"] == 10
    # The mean over three pictures: one scored twice or left out would move it by tenths.
    assert two["psnr"] == pytest.approx(alone["psnr"], rel=1e-5)
    assert two["ssim"] == pytest.approx(alone["ssim"], rel=1e-5)
