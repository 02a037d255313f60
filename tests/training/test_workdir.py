"""What is refused before a run begins, and the log that a resumed run goes on with."""

import json

import numpy as np
import pytest

from difflid_jax import config as schema
from difflid_jax.training import workdir
from difflid_jax.training.log import RunLog, take_back


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"--workdir: .*/file is a file; name a folder"):
        workdir.check(tmp_path / "file" / "run", 0)


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(OSError, match="--workdir: /proc cannot be written"):
        workdir.check(workdir.Path("/proc/difflid/run"), 0)


def test_a_full_disk_is_refused_with_what_is_needed(tmp_path):
    workdir.check(tmp_path / "run", 10)
    with pytest.raises(OSError, match=r"GB left, the checkpoints of this run take up to 1000000\.00 GB"):
        workdir.check(tmp_path / "run", 10**15)
    assert list(tmp_path.iterdir()) == []


def test_another_config_is_refused_by_its_fields(tmp_path):
    config = schema.default()
    workdir.create(tmp_path, schema.to_json(config, indent=2))
    assert not workdir.has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    assert workdir.has_checkpoints(tmp_path)
    schema.check_same_run(config, tmp_path / workdir.CONFIG)
    config.seed = 7
    with pytest.raises(ValueError, match=r"holds the run of another config: config\.seed is 7, was 0\. Give"):
        schema.check_same_run(config, tmp_path / workdir.CONFIG)
    (tmp_path / workdir.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        schema.check_same_run(config, tmp_path / workdir.CONFIG)


def test_lines_after_the_checkpoint_and_a_cut_one_are_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1}\n{"step": 10, "loss": 2}\n{"step": 15, "loss": 3}\n{"step": 1')
    take_back(path, 10)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 10]
    take_back(tmp_path / "none", 10)


def test_a_log_of_all_kinds(tmp_path):
    log = RunLog(tmp_path, first_step=0, total_steps=10)
    log.training(5, {"loss": 0.5, "psnr": float("nan"), "images_per_second": 3.0, "skipped": 2})
    log.evaluation(5, {"psnr": 20.0}, np.zeros((8, 24, 3), np.uint8))
    log.evaluation(5, {"psnr": 21.0}, np.zeros((8, 24, 3), np.uint8), kind="test")
    log.close()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "kind": "train", "step": 5, "loss": 0.5, "psnr": None, "images_per_second": 3.0, "skipped": 2
    }  # fmt: skip
    assert [line["kind"] for line in lines] == ["train", "validation", "test"]
    assert {path.name for path in (tmp_path / "sheets").iterdir()} == {"step_000005.png", "test_000005.png"}
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_other_processes_are_silent(tmp_path, capsys):
    log = RunLog(tmp_path, first_step=0, total_steps=10, primary=False)
    log.training(5, {"loss": 0.5})
    log.evaluation(5, {"psnr": 20.0}, np.zeros((8, 8, 3), np.uint8))
    log.say("nothing")
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""
