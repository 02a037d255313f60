"""The scripts that measure training, on the tiny experiment."""

import re
import subprocess
import sys

import pytest


def script(tiny, *arguments):
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, env=tiny.environment, cwd=tiny.repository, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_benchmark_splits_a_step_into_its_parts(tiny):
    output = script(tiny, "scripts/benchmark.py", "train", f"--config={tiny.config}", "--steps=4")
    for part in ("input, one thread", "h-space", "network, forward and backward", "optimizer", "whole step"):
        assert float(re.search(rf"\| {part} \| ([\d.,]+) \|", output)[1].replace(",", "")) > 0
    assert re.search(r"images/s in the loop, batches of 8, crops of 16; overhead .* -?[\d.]+ %", output)
    assert re.search(r"[\d.,]+ hours for 420,000 steps", output)


@pytest.mark.slow
def test_the_gpu_report_checks_measures_trains_and_resumes(tiny, tmp_path):
    folder = tmp_path / "results" / "gpu"
    command = ("scripts/gpu_report.py", "--tiny", "--steps=2", f"--output={folder}")
    printed = script(tiny, *command)
    assert (folder / "report.md").read_text() in printed
    checks, aims = printed.split("| aim | reached | figure |")
    assert checks.count("| yes |") == 6 and "**no**" not in printed
    assert printed.count("| whole step |") == 2
    assert re.search(r"\| h-space at 45 % of the measured matrix peak, or more \| (yes|no) \| [\d.]+ %", aims)
    assert re.search(r"62×46, one at a time: [\d.]+ ms", aims)
    assert re.search(r"\| the demo trains to its end \| yes \| .*psnr", aims)
    (folder / "4-restoring.md").write_text("kept")
    (folder / "1-parity.md").unlink()
    assert "kept" in script(tiny, *command) and (folder / "1-parity.md").exists()
