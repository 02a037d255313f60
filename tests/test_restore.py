"""The program: restored files, messages and exit status. Its parts are tested in restoration/."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image


def test_the_program(restorer_folder, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((50, 60, 3), 150, np.uint8)).save(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "b.jpg").write_text("not an image")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def program(*arguments):
        command = [sys.executable, "-m", "difflid_jax.restore", str(tmp_path / "in"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = program(f"--output={tmp_path / 'out'}", f"--weights={restorer_folder}")
    assert done.returncode == 1
    assert "1 photograph restored" in done.stdout
    assert "b.jpg: not an image" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]
    assert any((tmp_path / "cache" / "difflid_jax").iterdir())
    refused = program("--output=x", "--weights=no")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr


def test_help_does_not_wait_for_jax():
    code = "import sys, difflid_jax.restore; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
