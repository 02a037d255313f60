"""What is refused before a run begins, and the log that a resumed run goes on with."""

import json
import resource

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from difflid_jax.config import experiment, schema
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
    with pytest.raises(OSError, match=r"GB free, but the checkpoints of this run need up to 1000000\.00 GB"):
        workdir.check(tmp_path / "run", 10**15)
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoints_of_a_run_that_goes_on_are_not_asked_for_again(tmp_path, monkeypatch):
    (tmp_path / workdir.CHECKPOINTS / "100").mkdir(parents=True)
    (tmp_path / workdir.CHECKPOINTS / "100" / "state").write_bytes(bytes(600))
    disk = workdir.shutil.disk_usage(tmp_path)._replace(free=400)
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda path: disk)
    workdir.check(tmp_path, 1000)
    # 401 bytes are not "0.00 GB".
    with pytest.raises(OSError, match=r"has 400 bytes free, .* need up to 401 bytes; make room"):
        workdir.check(tmp_path, 1001)


def test_another_config_is_refused_by_its_fields(tmp_path):
    config = schema.default()
    workdir.begin(tmp_path, config.to_dict())
    assert not workdir.has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    assert workdir.has_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "100").rename(tmp_path / "checkpoints" / "replaced.100")
    assert workdir.has_checkpoints(tmp_path)
    workdir.check_same_run(tmp_path, experiment.resolve(config).differences)
    config.seed = 7
    other = experiment.resolve(config).differences
    with pytest.raises(ValueError, match=r"holds the run of another config: config\.seed is 7, was 0\. Give"):
        workdir.is_resumed(tmp_path, other)
    (tmp_path / workdir.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        workdir.check_same_run(tmp_path, other)


def test_a_run_is_finished_if_it_has_done_what_is_asked_for(tmp_path):
    asked = {"fingerprint": "a", "data.test": ""}
    assert not workdir.is_finished(tmp_path, asked)
    workdir.finish(tmp_path, asked)
    assert not workdir.is_finished(tmp_path, asked)  # without weights
    (tmp_path / workdir.WEIGHTS).mkdir()
    assert workdir.is_finished(tmp_path, asked)
    assert not workdir.is_finished(tmp_path, asked | {"data.test": "SOTS"})
    assert workdir.is_finished(tmp_path, asked | {"prior": "P"})  # which an older version did not record
    workdir.begin(tmp_path, {})
    assert not workdir.is_finished(tmp_path, asked)


def test_lines_after_the_checkpoint_and_a_cut_one_are_taken_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": kind, "step": step} for step in (5, 10, 15) for kind in ("train", "validation")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "train", "step": 1')
    take_back(path, 10, 10)
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:4]
    take_back(path, 10, 5)  # killed before a checkpoint had the evaluation of step 10
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:3]
    take_back(tmp_path / "none", 10, -1)


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


def test_tensorboard_reads_all_and_forgets_what_is_taken_back(tmp_path):
    for first, steps in ((0, (5, 10, 15)), (10, (15,))):
        (tmp_path / str(first)).mkdir()
        log = RunLog(tmp_path / str(first), first_step=first, total_steps=20)
        for step in steps:
            log.training(step, {"loss": step / 2})
        log.evaluation(steps[-1], {"psnr": 20.0}, np.zeros((8, 24, 3), np.uint8))
        log.close()
    for first, steps in ((0, [5, 10, 15]), (10, [15])):
        (path,) = (tmp_path / str(first) / "tensorboard").iterdir()
        found = list(events(path))
        assert found[0].file_version == "brain.Event:2"
        assert (found[1].step, found[1].session_log.status) == (first + 1, SessionLog.START)
        written = [(event.step, value) for event in found[2:] for value in event.summary.value]
        losses = [(step, value.simple_value) for step, value in written if value.tag == "train/loss"]
        assert losses == [(step, step / 2) for step in steps]
        assert written[-1][1].image.width == 24 and written[-1][1].tag == "validation/hazy_restored_clean"


def events(path):
    """The records of an event file: length, its checksum, the event, its checksum."""
    raw = path.read_bytes()
    while raw:
        length = int.from_bytes(raw[:8], "little")
        yield Event.FromString(raw[12 : 12 + length])
        raw = raw[16 + length :]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_disk_that_fills_up_is_reported_at_once(tmp_path, tensorboard):
    log = RunLog(tmp_path, first_step=0, total_steps=1000, tensorboard=tensorboard)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written \(.*\); make room, then the same") as caught:
            for step in range(1000):
                log.training(step, {"loss": 0.5})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (full,) = (tmp_path / "tensorboard").iterdir() if tensorboard else [tmp_path / "metrics.jsonl"]
    assert caught.value.filename == str(full)


def test_other_processes_are_silent(tmp_path, capsys):
    log = RunLog(tmp_path, first_step=0, total_steps=10, primary=False)
    log.training(5, {"loss": 0.5})
    log.evaluation(5, {"psnr": 20.0}, np.zeros((8, 8, 3), np.uint8))
    log.say("nothing")
    log.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""
