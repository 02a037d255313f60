"""The converter as a program."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert_weights.perceptual import convert
from difflid_jax.metrics.lpips import Lpips
from difflid_jax.weights import store

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "convert_weights.perceptual", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_lpips_becomes_a_folder_that_measures_the_same(tmp_path):
    done = run("--network=lpips_alex", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "lpips_alex, 2,470,848 parameters, from alexnet.ckpt" in done.stdout
    a, b = np.random.default_rng(0).random((2, 1, 32, 40, 3)).astype(np.float32)
    np.testing.assert_array_equal(Lpips("alex", weights=tmp_path)(a, b), Lpips("alex")(a, b))
    with pytest.raises(ValueError, match=r"expected LPIPS weights for 'vgg', found .*alex"):
        Lpips("vgg", weights=tmp_path)
    assert len(store.read_metadata(tmp_path)["source_sha256"]) == 64


def test_a_file_whose_name_belies_its_content_is_refused_in_one_line(tmp_path):
    source = tmp_path / "resnet50-0676ba61.pth"
    source.write_bytes(b"half a download")
    done = run("--network=resnet50", f"--source={source}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "promises a SHA-256 that starts with 0676ba61" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", [[np.zeros(3)], {0: np.zeros(3)}, np.zeros(3)])
def test_a_file_without_a_state_dict_is_refused(state):
    with pytest.raises(ValueError, match=r"x\.pth: expected a state dict .* of resnet50"):
        convert("resnet50", state, where="x.pth")
