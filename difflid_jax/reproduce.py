"""Reproduce a table or figure of the paper: run what it needs, one run after the other, and write the result.

    python -m difflid_jax.reproduce --exhibit=table2 --budget=laptop --data=nyu=nyu_v2_labelled_train.tar
    python -m difflid_jax.reproduce --exhibit=table2 --budget=paper --prior=weights/imagenet256 \
        --data=sots=ITS,SOTS/indoor --data=dense_haze=Dense-Haze --data=nh_haze=NH-HAZE

`laptop` trains the rows at a size that one CPU core trains in minutes (configs/sots_rebuilt.py, NYU ids
1–1299, scored on ids 1300–1399; configs/lol_v1_laptop.py for table4). `paper` trains the paper's configs.
`plus` is not the paper's: DiffLI²D+ against the paper's block, with equal numbers of trained parameters.
Every run is a workdir of `train` below --workdir: the same command resumes an interrupted study, finished
runs are kept, and the page is rewritten after each of them. --dry_run lists the runs.

Written into --output: EXHIBIT.md with our scores over the seeds, the paper's and the differences, EXHIBIT.csv
with every run and the SHA-256 of its weights, and for figure8 a plot. figure1, figure2 and figure7 are made
by `study` and written into OUTPUT/EXHIBIT.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from difflid_jax.cli import UsageError, definer, refuse_arguments, run
from difflid_jax.exhibits.runs import (
    EXHIBITS,
    LAYERS,
    STUDIES,
    Run,
    data_flags,
    runs,
    study_flags,
    study_steps,
)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test passes its own `values`."""
    define = definer(values)
    define("enum", "exhibit", None, [*EXHIBITS, *STUDIES], "Table or figure.")
    define("enum", "budget", "laptop", ["laptop", "paper"], "Size of the runs.")
    define("multi_string", "data", [], "COLUMN=TRAIN,TEST or COLUMN=PATH for both; laptop: nyu=TAR.")
    define("path", "prior", "", "Frozen diffusion model (laptop default: photos64).")
    define("path", "resnet50", "", "Weights folder of ResNet-50, for table3.")
    define("string", "layer_e", "", "Index of table3's encoder block.")
    define("string", "layer_d", "", "Index of table3's decoder block.")
    define("list", "rows", [], "Only these rows; of figure8: T1_T2,….")
    define("integer", "seeds", 1, "Seeds per row.", lower_bound=1)
    define("path", "workdir", "runs/reproduce", "Folder of all runs.")
    define("path", "output", "", "Folder of the results (default: --workdir).")
    define("bool", "dry_run", False, "List the runs and what they cost, and stop.")
    define("float", "seconds_per_step", 1.0, "For --dry_run; measure yours: scripts/benchmark.py train.")


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    refuse_arguments(argv)
    if options.exhibit is None:
        raise UsageError(f"give --exhibit, one of {', '.join([*EXHIBITS, *STUDIES])}")
    if options.exhibit in STUDIES:
        return _study(options)
    planned = _chosen(runs(options.exhibit, options.budget, options.seeds), options.rows)
    if not planned:
        raise UsageError(f"--exhibit={options.exhibit} has runs at --budget=laptop only")
    if options.dry_run:
        for item in planned:
            print(f"{item.folder}: {item.steps:,} steps, {_hours(item.steps, options):.1f} h")
        hours = _hours(sum(item.steps for item in planned), options)
        print(f"{len(planned)} runs, {hours:.1f} h at {options.seconds_per_step:g} s a step")
        return 0
    workdir = Path(options.workdir)
    output = Path(options.output or options.workdir)
    commands = [_command(item, workdir, options) for item in planned]  # refuses before anything is run
    return _run_all(planned, commands, workdir, output, options)


def _study(options: flags.FlagValues) -> int:
    """Run the study of Sec. 4.1 behind Figs. 1, 2 and 7; return its exit status."""
    if options.rows or options.seeds > 1:
        raise UsageError(f"--rows and --seeds: --exhibit={options.exhibit} is one study, without either")
    command = _study_command(options)
    if not options.dry_run:
        return _call(command)
    steps = study_steps(options.exhibit, options.budget)
    print(shlex.join(command[1:]))
    print(f"{steps:,} steps, {_hours(steps, options):.1f} h at {options.seconds_per_step:g} s a step")
    return 0


def _call(command: Sequence[str]) -> int:
    """Run a program; its exit status, or 128 + n if signal n ended it.

    It has a process group of its own and gets each signal from here, once, so that it can save and end:
    `subprocess.run` kills it a quarter of a second after Ctrl-C, and SIGTERM would leave it running.
    """
    program = subprocess.Popen(command, process_group=0)

    def pass_on(number: int, frame: object) -> None:
        program.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        status = program.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _study_command(options: flags.FlagValues) -> list[str]:
    own = study_flags(options.exhibit, options.budget, _paths(options))
    output = Path(options.output or options.workdir) / options.exhibit
    program = [sys.executable, "-m", "difflid_jax.study"]
    return [*program, *own, f"--weights={_prior(options)}", f"--output={output}", "--overwrite"]


def _paths(options: flags.FlagValues) -> dict[str, list[str]]:
    """--data: column → paths."""
    paths = {}
    for text in options.data:
        column, equals, given = text.partition("=")
        if not equals or given.count(",") > 1:
            raise UsageError(f"--data: expected COLUMN=TRAIN,TEST or COLUMN=PATH, found {text!r}")
        paths[column] = given.split(",")
    return paths


def _prior(options: flags.FlagValues) -> str:
    if not options.prior and options.budget == "paper":
        raise UsageError("--budget=paper needs --prior=FOLDER (python -m convert_weights.openai_ddpm)")
    return options.prior or "photos64"


def _hours(steps: int, options: flags.FlagValues) -> float:
    return steps * options.seconds_per_step / 3600


def _chosen(planned: list[Run], rows: Sequence[str]) -> list[Run]:
    names = {item.name for item in planned}
    if unknown := sorted({*rows} - names):
        raise UsageError(f"--rows: expected some of {', '.join(sorted(names))}, found {', '.join(unknown)}")
    return [item for item in planned if not rows or item.name in rows]


def _command(item: Run, workdir: Path, options: flags.FlagValues) -> list[str]:
    """The command of a run. Raises ValueError if a path that it needs is not given."""
    layers = LAYERS[options.budget]
    chosen = {
        "layer_e": options.layer_e or layers["layer_e"],
        "layer_d": options.layer_d or layers["layer_d"],
        "resnet50": options.resnet50,
    }
    if item.row == "resnet50" and not options.resnet50:
        raise UsageError(
            "table3 needs --resnet50=FOLDER (python -m convert_weights.perceptual), or leave the row out: "
            "--rows=layer_e,layer_d,vgg16,h_space"
        )
    own = [flag.format(**chosen) for flag in item.flags]
    if not any(flag.startswith("--config.prior=") for flag in own):
        own.append(f"--config.prior={_prior(options)}")
    train = [sys.executable, "-m", "difflid_jax.train", f"--workdir={workdir / item.folder}"]
    cache = f"--config.data.cache={workdir / 'cache'}"
    return [*train, *own, *data_flags(item, options.budget, _paths(options)), cache]


def _run_all(
    planned: Sequence[Run],
    commands: Sequence[list[str]],
    workdir: Path,
    output: Path,
    options: flags.FlagValues,
) -> int:
    from difflid_jax.exhibits import report

    failed = []
    for number, (item, command) in enumerate(zip(planned, commands, strict=True), 1):
        # Finished or not: `train` leaves a finished run as it is, and refuses one of another budget or prior.
        print(f"[{number}/{len(planned)}] {item.folder}: {shlex.join(command[2:])}", file=sys.stderr)
        status = _call(command)
        if status > 128:
            print("reproduce: interrupted; the same command resumes", file=sys.stderr)
            return status
        failed += [item] * (status != 0)
        outcomes = report.collect(workdir, [run for run in planned if run not in failed])
        page = report.write(output, options.exhibit, options.budget, planned, outcomes)
    print(page.read_text("utf-8"))
    if failed:
        print(f"reproduce: {len(failed)} of {len(planned)} runs failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run(main, define_flags)
