"""The script that averages the two ends of a run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from difflid_jax.weights import store

ROOT = Path(__file__).resolve().parents[2]


def average(folder, *arguments):
    command = [
        sys.executable,
        ROOT / "scripts" / "average.py",
        "--before=before",
        "--after=after",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def ends(tmp_path):
    for name, value in (("before", 1.0), ("after", 3.0)):
        tensors = {"a": np.full((2, 2), value, np.float16)}
        store.save(tmp_path / name, "restorer", tensors, {"x": 1}, prior_sha256="0", step=len(name))
    return tmp_path


def test_the_share_is_that_of_the_later_weights(ends):
    result = average(ends, "--share=0.25", "--output=out")
    assert result.returncode == 0, result.stderr
    found = store.read(ends / "out", "restorer")
    np.testing.assert_array_equal(found.tensors["a"], np.full((2, 2), 1.5, np.float32))
    assert found.metadata["step"] == 5 and found.metadata["averaged"]["share"] == 0.25


def test_what_does_not_belong_together_and_what_is_there_is_refused(ends):
    refused = average(ends, "--output=before")
    assert refused.returncode == 2 and "before: already exists" in refused.stderr
    other = {"a": np.zeros((2, 2), np.float32)}
    store.save(ends / "after", "restorer", other, {"x": 1}, prior_sha256="1")
    refused = average(ends, "--output=out")
    assert refused.returncode == 2 and "expected one prior_sha256, found 0 and 1" in refused.stderr
    assert not (ends / "out").exists()
