"""The package outside of its repository: what a wheel holds, and the command `difflid` that it installs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.__main__ import PROGRAMS

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, so that no build directory appears in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("difflid_jax", "convert_weights", "configs"):
        shutil.copytree(
            REPOSITORY / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / "source")
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), "."]
    subprocess.run([sys.executable, "-m", "pip", *build], cwd=folder / "source", check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    return folder


def difflid(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the installed command with the wheel's packages in front of the repository's."""
    command = [sys.executable, str(installed / "bin" / "difflid"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONIOENCODING": "ascii"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_wheel_holds_configs_converters_and_shipped_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = [
        *(f"difflid_jax/configs/{path.name}" for path in (REPOSITORY / "configs").glob("*.py")),
        *(f"convert_weights/{path.name}" for path in (REPOSITORY / "convert_weights").glob("*.py")),
        *(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "difflid_jax").rglob("*.py")),
        "difflid_jax/web/page.html",
        *(f"difflid_jax/assets/{name}/model.safetensors" for name in ("haze", "photos64")),
    ]
    assert names.issuperset(expected), sorted(set(expected) - names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "difflid_jax",
        "convert_weights",
    }


def test_the_command_lists_its_programs_and_refuses_others(installed, tmp_path):
    found = difflid(installed, tmp_path)
    assert found.returncode == 0 and all(f"  {name} " in found.stdout for name in PROGRAMS)
    found = difflid(installed, tmp_path, "retsore")
    assert found.returncode == 2 and "unknown command 'retsore'" in found.stderr
    found = difflid(installed, tmp_path, "check-data", "--help")
    assert found.returncode == 0 and "--dataset" in found.stdout


@pytest.mark.slow
def test_the_command_restores_and_finds_configs_outside_the_repository(installed, tmp_path):
    hazy = tmp_path / "photo.png"
    Image.fromarray(np.full((32, 48, 3), 200, np.uint8)).save(hazy)
    found = difflid(installed, tmp_path, "restore", "photo.png", "--output=clear")
    assert found.returncode == 0, found.stderr
    with Image.open(tmp_path / "clear" / "photo.png") as clear:
        assert clear.size == (48, 32)
    found = difflid(installed, tmp_path, "train", "--config=table2:sots,full", "--workdir=run")
    assert found.returncode == 2 and "config.data.train" in found.stderr
