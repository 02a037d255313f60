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
    """A run as two processes, told to stop through the second one only, and gone on with as two."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    first = launch(tiny, workdir)
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.01)
    first[1].send_signal(signal.SIGTERM)
    stopped = finish(first)
    ended = finish(launch(tiny, workdir))
    return workdir, stopped, ended


def test_a_signal_to_one_stops_both_at_the_same_step(runs):
    _, (codes, said), _ = runs
    assert codes == [143, 143], said
    assert "To resume: " in said[0] and "To resume: " not in said[1]


def test_they_go_on_and_train_what_one_process_trains(tiny, runs, undisturbed):
    workdir, _, (codes, said) = runs
    assert codes == [0, 0], said
    assert "in 2 processes" in said[0] and "resumed after step" in said[0]
    assert "weights of step" in said[0] and "weights of step" not in said[1]
    losses = [[line["loss"] for line in tiny.lines(run, "train")] for run in (workdir, undisturbed)]
    assert len(losses[0]) == len(losses[1]) == 20
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    two, alone = tiny.trained(workdir), tiny.trained(undisturbed)
    # Adam divides by the root of a tiny second moment, which magnifies the rounding of the first steps.
    for name, value in alone.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_together_they_score_each_picture_once(tiny, runs, undisturbed):
    two, alone = (tiny.lines(run, "validation") for run in (runs[0], undisturbed))
    assert [line["step"] for line in two] == [line["step"] for line in alone] == [10, 20]
    for mine, other in zip(two, alone, strict=True):
        # The mean over three pictures: one scored twice or left out would move it by tenths.
        assert mine["psnr"] == pytest.approx(other["psnr"], rel=1e-5)
        assert mine["ssim"] == pytest.approx(other["ssim"], rel=1e-5)
