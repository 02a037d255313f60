"""The script of the results table."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from difflid_jax.cli import UsageError
from difflid_jax.images.files import write_png

results = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "results.py"))
)


def run(*arguments: str) -> int:
    options = flags.FlagValues()
    results.define_flags(options)
    options(["results", *arguments])
    return results.main([""], options)


def test_every_method_on_every_set_with_its_size_and_warm_time(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, scale in (("a", 0.9), ("b", 0.6)):
        for folder in ("hazy", "clean"):
            (tmp_path / name / folder).mkdir(parents=True)
        for number, size in enumerate([(40, 36), (36, 40)]):
            clean = random.integers(0, 256, (*size, 3), np.uint8)
            write_png(tmp_path / name / "clean" / f"{number}.png", clean)
            write_png(
                tmp_path / name / "hazy" / f"{number}.png",
                (clean * scale + 255 * (1 - scale)).astype(np.uint8),
            )
    output = tmp_path / "out" / "results.json"
    sets = [f"--data=Set {name.upper()}=folders:{tmp_path / name}" for name in ("a", "b")]
    assert run(*sets, "--weights=", f"--output={output}") == 0
    written, text = json.loads(output.read_text()), output.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out and "Protocol `paper`" in text
    assert [entry["title"] for entry in written["sets"]] == ["Set A", "Set B"]
    for entry in written["sets"]:
        assert f"## {entry['title']}" in text
        assert [method["method"] for method in entry["methods"]] == ["identity", "dark_channel_prior"]
        for method in entry["methods"]:
            # Each image has a size of its own: only a call before the timed one makes a time of these.
            assert method["seconds_per_image"] > 0 and len(method["images"]) == 2
            assert f"{method['mean']['lpips']:.4f}" in text
    with pytest.raises(UsageError, match="already exists"):
        run(*sets, "--weights=", f"--output={output}")
    with pytest.raises(ValueError, match="TITLE=WHAT:PATH"):
        run("--data=nowhere", f"--output={tmp_path / 'other.json'}")
