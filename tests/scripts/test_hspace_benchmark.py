"""The benchmarks are found by name, and that of the h-space prints a table that adds up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.weights import store

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SPEC = UNetSpec(
    image_size=32,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2),
    num_head_channels=16,
)


def run(*arguments):
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_benchmarks_are_found_by_name():
    names = sorted(path.stem for path in (SCRIPTS / "benchmarks").glob("*.py"))
    assert "hspace" in names
    for arguments in ([], ["nothing"]):
        done = run(*arguments)
        assert done.returncode == 2 and not done.stdout
        assert len(done.stderr.splitlines()) == 1 and ", ".join(names) in done.stderr
    done = run("--help")
    assert done.returncode == 0 and ", ".join(names) in done.stdout


def test_a_bad_request_is_one_line(tmp_path):
    done = run("hspace", f"--weights={tmp_path}")
    assert done.returncode == 2 and "shipped weights" in done.stderr
    assert done.stderr.startswith("hspace: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_table_of_the_h_space_adds_up(tmp_path, drawn):
    unet = drawn(lambda: UNet(SPEC, rngs=nnx.Rngs(0)))
    store.save(tmp_path, "unet", store.tensors_of(unet), SPEC.to_dict())
    done = run("hspace", f"--weights={tmp_path}", "--size=64", "--turns=5", "--batch_size=2")
    assert done.returncode == 0, done.stderr
    row = re.compile(r"^(.{34}) *([\d.,]+) +([\d.,]+) +([\d.,]+) +([\d.]+)% +([\d,]+) MiB +([\d.]+)$", re.M)
    rows = {
        match[1].strip(): [float(text.replace(",", "")) for text in match.groups()[1:]]
        for match in row.finditer(done.stdout)
    }
    assert list(rows) == ["h-space at both timesteps", "whole U-Net, twice"]
    encoder, whole = rows.values()
    # The decoder is more than half of the work.
    assert whole[1] > 2 * encoder[1]
    assert encoder[5] == 1 and whole[5] > 1.5
