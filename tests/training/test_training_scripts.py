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
    said = script(tiny, "scripts/benchmark.py", "train", f"--config={tiny.config}", "--steps=4")
    for part in ("input, one thread", "h-space", "network, forward and backward", "optimiser", "whole step"):
        assert float(re.search(rf"\| {part} \| ([\d.,]+) \|", said)[1].replace(",", "")) > 0
    assert re.search(r"images/s in the loop, batches of 8, crops of 16; overhead .* -?[\d.]+ %", said)
    assert re.search(r"[\d.,]+ hours for 420,000 steps", said)


@pytest.mark.slow
def test_the_report_on_a_device_checks_and_measures(tiny, tmp_path):
    report = tmp_path / "results" / "report.md"
    said = script(tiny, "scripts/gpu_report.py", "--tiny", "--steps=2", f"--output={report}")
    assert report.read_text() in said
    checks, aims = said.split("| aim | reached | figure |")
    assert checks.count("| yes |") == 5 and "**no**" not in said
    assert said.count("| whole step |") == 2
    assert re.search(r"\| h-space at 45 % of the measured matrix peak, or more \| (yes|no) \| [\d.]+ %", aims)
    assert len(aims.strip().splitlines()) == 1 + 6 and "memory of a device at the peak" in said
