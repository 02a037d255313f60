"""The input benchmark prints its table, and refuses a data set in one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "benchmarks" / "input.py"


def _run(*arguments):
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_table_shows_that_the_cache_gives_ten_times_the_crops():
    done = _run("--seconds=0.5")
    assert done.returncode == 0, done.stderr
    ratios = re.search(r"^decoded cache +[\d,]+ +([\d.]+)$", done.stdout, re.M)
    assert float(ratios[1]) > 10


@pytest.mark.slow
def test_a_bad_data_set_is_one_line():
    done = _run("--data=/nothing/here")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("input: /nothing/here")
