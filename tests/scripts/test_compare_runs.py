"""The script of the learning curves."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_runs.py"


def compare(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def log(folder, scores):
    folder.mkdir()
    lines = [{"kind": "train", "step": 1, "loss": 1.0}]
    lines += [{"kind": "validation", "step": step, "psnr": value} for step, value in scores.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_arms_are_compared_at_the_last_step_that_all_have_reached(tmp_path):
    runs = [
        f"--run=ours={log(tmp_path / 'a', {10: 20.0, 20: 22.0, 30: 29.0})}",
        f"--run=ours={log(tmp_path / 'b', {10: 20.0, 20: 24.0})}",
        f"--run=other={log(tmp_path / 'c', {10: 19.0, 20: 21.5})}",
    ]
    result = compare(*runs, f"--output={tmp_path / 'out' / 'curves'}")
    assert result.returncode == 0, result.stderr
    assert "psnr at step 20" in result.stdout
    assert "| ours | 23.000 | ± 1.414 | 22.000, 24.000 |" in result.stdout
    assert "| other | 21.500 | – | 21.500 |" in result.stdout
    assert (tmp_path / "out" / "curves.md").read_text() == result.stdout
    colours = Image.open(tmp_path / "out" / "curves.png").convert("RGB").getcolors(1 << 24)
    drawn = {colour for _, colour in colours}
    assert {(31, 119, 180), (255, 127, 14)} <= drawn  # a colour for each arm


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path):
    a, b = log(tmp_path / "a", {10: 20.0}), log(tmp_path / "b", {20: 20.0})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    for runs, said in (
        ([f"--run=a={a}", f"--run=b={b}"], "no evaluation at a common step"),
        ([f"--run={a}"], "LABEL=WORKDIR"),
        ([f"--run=c={tmp_path / 'c'}"], "no validation psnr yet"),
        ([f"--run=d={tmp_path / 'd'}"], "metrics.jsonl"),
        ([], "--run"),
    ):
        result = compare(*runs, f"--output={tmp_path / 'out'}")
        assert result.returncode == 2 and said in result.stderr
        assert len(result.stderr.splitlines()) == 1
