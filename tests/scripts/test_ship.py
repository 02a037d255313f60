"""The script that makes weights an asset."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from difflid_jax.weights import store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ship(tmp_path):
    """The script, run in a copy of the repository's package: it writes into the package's own folder."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "ship.py").write_bytes((ROOT / "scripts" / "ship.py").read_bytes())
    package = tmp_path / "difflid_jax"
    for folder in (".", "weights"):
        (package / folder).mkdir(exist_ok=True)
        for file in (ROOT / "difflid_jax" / folder).glob("*.py"):
            (package / folder / file.name).write_bytes(file.read_bytes())

    def run(*arguments):
        command = [sys.executable, tmp_path / "scripts" / "ship.py", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
        )

    run.assets = package / "assets"
    return run


def test_a_prior_and_then_a_restorer_on_it(ship, tmp_path):
    tensors = {"a": np.linspace(-1, 1, 9, dtype=np.float32)}
    data = {"train": "/home/me/nyu.tar,/home/me/nyu.tar,/data/bsds", "validation": "", "crop": 64}
    config = {"data": data, "init": "/home/me/runs/before/weights", "prior": "small"}
    store.save(tmp_path / "prior", "unet", tensors, {"x": 1}, config=config, step=7)
    about = {"prior": "small", "prior_sha256": "0", "config": config}
    store.save(tmp_path / "restorer", "restorer", tensors, {"x": 1}, **about)

    refused = ship("--weights=restorer", "--name=haze")
    assert refused.returncode == 2 and "expected a shipped prior" in refused.stderr
    assert not ship.assets.exists()
    for name, kind in (("small", "unet"), ("haze", "restorer")):
        result = ship(f"--weights={'prior' if kind == 'unet' else 'restorer'}", f"--name={name}")
        assert result.returncode == 0, result.stderr
        shipped = store.read(ship.assets / name, kind)
        assert shipped.tensors["a"].dtype == np.float16 and shipped.architecture == {"x": 1}
        np.testing.assert_array_equal(shipped.tensors["a"], tensors["a"].astype(np.float16))
        assert "/" not in json.dumps(shipped.metadata)
        said = shipped.metadata["config"]
        assert said["data"] == {"train": "2 × nyu.tar, bsds", "validation": "", "crop": 64}
        assert said["init"] == "weights"
