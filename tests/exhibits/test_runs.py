"""The runs behind the exhibits resolve to experiments, and their reports compare them with the paper."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from difflid_jax import reproduce, study
from difflid_jax.cli import UsageError, find_config
from difflid_jax.config.experiment import resolve
from difflid_jax.exhibits import report
from difflid_jax.exhibits.runs import EXHIBITS, STUDIES, reference, runs
from difflid_jax.weights import store


def options(*arguments):
    values = flags.FlagValues()
    reproduce.define_flags(values)
    values(["reproduce", *arguments])
    return values


PATHS = [f"--data={column}=TRAIN,TEST" for column in ("nyu", "sots", "dense_haze", "nh_haze")]
PATHS += ["--data=lol_v1=LOL", "--data=lol_v2_real=LOL2", "--resnet50=R", "--prior=P"]


@pytest.mark.parametrize("budget", ["laptop", "paper"])
@pytest.mark.parametrize("exhibit", EXHIBITS)
def test_every_run_of_an_exhibit_is_an_experiment_of_its_own(exhibit, budget, tmp_path, monkeypatch):
    elements = {"sots": 13_990, "lol_v1": 485, "lol_v2_real": 689}
    planned = runs(exhibit, budget, seeds=2)
    assert len({run.folder for run in planned}) == len(planned)
    fingerprints = set()
    for run in planned:
        _, config, *overrides = reproduce._command(run, tmp_path, options(*PATHS))[3:]
        arguments = ["train", f"--config={find_config(config[9:])}", *overrides]
        monkeypatch.setattr("sys.argv", arguments)  # where config_flags finds the overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        values(arguments)
        experiment = resolve(values.config)
        assert experiment.total_steps(elements.get(run.column, 50)) == run.steps
        fingerprints.add((run.column, experiment.fingerprint))
    assert len(fingerprints) == len(planned)


@pytest.mark.parametrize("budget", ["laptop", "paper"])
@pytest.mark.parametrize("exhibit", STUDIES)
def test_a_figure_of_the_study_is_one_command_of_it(exhibit, budget):
    given = options(*PATHS, f"--exhibit={exhibit}", f"--budget={budget}", "--output=OUT")
    _, _, module, *arguments = reproduce._study_command(given)
    values = flags.FlagValues()
    study.define_flags(values)
    assert module == "difflid_jax.study"
    assert values(["study", *arguments])[1:] == [STUDIES[exhibit]]
    assert values.output == f"OUT/{exhibit}" and values.weights == "P"
    assert bool(values.train) == (exhibit == "figure2")
    with pytest.raises(ValueError, match="give --data="):
        reproduce._study_command(options(f"--exhibit={exhibit}", f"--budget={budget}", "--prior=P"))


@pytest.mark.parametrize("exhibit", ["table2", *STUDIES])
def test_a_dry_run_gives_hours_and_runs_nothing(exhibit, capsys, monkeypatch, tmp_path):
    given = options(f"--exhibit={exhibit}", "--data=nyu=N", "--dry_run", f"--workdir={tmp_path / 'runs'}")
    monkeypatch.setattr(reproduce.flags, "FLAGS", given)
    assert reproduce.main(["reproduce"]) == 0
    steps = {"table2": 4 * 400, "figure2": 11 * 400}.get(exhibit, 0)
    assert f"{steps / 3600:.1f} h at 1 s a step" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


SAVES = """
import signal, sys, time
def save(number, frame):
    signal.signal(number, signal.SIG_DFL)
    time.sleep(0.6)
    print("saved", flush=True)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, save)
print("started", flush=True)
time.sleep(60)
"""
CALL = "import sys; from difflid_jax import reproduce; sys.exit(reproduce._call(sys.argv[1:]))"


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_an_interrupted_run_may_save_before_it_ends(number, send):
    """SIGINT as a terminal sends it, to the whole process group; SIGTERM to the program alone."""
    command = [sys.executable, "-c", CALL, sys.executable, "-c", SAVES]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert program.stdout.readline() == "started\n"
    send(program.pid, number)
    assert program.communicate(timeout=30)[0] == "saved\n"
    assert program.returncode == 128 + number


def test_what_is_missing_is_named_before_anything_is_run(tmp_path):
    (run, *_) = runs("table3", "laptop", 1)
    with pytest.raises(ValueError, match="give --data=nyu=TRAIN,TEST"):
        reproduce._command(run, tmp_path, options())
    resnet = next(run for run in runs("table3", "laptop", 1) if run.row == "resnet50")
    with pytest.raises(UsageError, match="--resnet50=FOLDER"):
        reproduce._command(resnet, tmp_path, options("--data=nyu=N"))
    with pytest.raises(UsageError, match="--rows: expected some of"):
        reproduce._chosen(runs("table2", "laptop", 1), ["half"])
    with pytest.raises(UsageError, match="expected COLUMN=TRAIN,TEST or"):
        reproduce._paths(options("--data=nyu=A,B,C"))
    (point,) = reproduce._chosen(runs("figure8", "laptop", 1), options("--rows=0_300").rows)
    assert point.row == "0,300"


def test_a_run_of_another_budget_in_its_workdir_is_not_taken_for_it(tmp_path, monkeypatch):
    """Column lol_v1 belongs to both budgets; `train` refuses the config of the other."""
    planned = [run for run in runs("table4", "paper", 1) if run.column == "lol_v1"]
    for run, psnr in zip(planned, (15.0, 16.0), strict=True):
        folder, tensors = tmp_path / run.folder / "weights", {"x": np.ones(1, np.float32)}
        store.save(folder, "restorer", tensors, {}, scores={"psnr": psnr})
    monkeypatch.setattr(reproduce, "_call", lambda command: 2 if "random-0" in command[3] else 0)
    given = options(*PATHS, "--exhibit=table4", "--budget=paper")
    commands = [reproduce._command(run, tmp_path, given) for run in planned]
    assert reproduce._run_all(planned, commands, tmp_path, tmp_path, given) == 1
    table = (tmp_path / "table4.csv").read_text()
    assert table.count("\n") == 2 and ",full,0,16.0" in table


def test_the_page_gives_ours_the_papers_and_the_differences(tmp_path):
    planned = runs("table2", "laptop", seeds=2)
    for run, psnr in zip(planned, (20.0, 21.0, 20.5, 22.0, 20.2, 21.0, 20.5, 22.4), strict=True):
        store.save(
            tmp_path / run.folder / "weights",
            "restorer",
            {"x": np.ones(1, np.float32)},
            {},
            scores={"psnr": psnr, "ssim": 0.9},
        )
    outcomes = report.collect(tmp_path, planned)
    text = report.write(tmp_path / "out", "table2", "laptop", planned, outcomes).read_text()
    assert "8 of 8 runs finished" in text
    assert "| baseline | 2 | 20.10 ± 0.14 | 0.900 ± 0.000 |  | -2.10 | 36.65 | -16.55 | -3.68 |" in text
    assert "| full | 2 | 22.20 ± 0.28 | 0.900 ± 0.000 |  | +0.00 | 40.33 | -18.13 | +0.00 |" in text
    assert (tmp_path / "out" / "table2.csv").read_text().count("\n") == 9
    others = report.page("table1", "paper", runs("table1", "paper", 1), [])
    assert "| aod_net | 0 |  |  |  |  | 19.82 |  | -20.51 |" in others  # as the paper gives it
    assert reference("table2") == "full" and reference("figure8") == "0,500"
