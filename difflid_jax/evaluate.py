"""Score dehazing methods on a data set: PSNR, SSIM, LPIPS and, where asked for, FID.

The test set of a run, with the weights that its training wrote (or one row per method named):

    python -m difflid_jax.evaluate --workdir=runs/demo --method=identity,dark_channel_prior,difflid

A data set in its own layout, or any two folders, with the shipped weights or any others:

    python -m difflid_jax.evaluate --data=/data/SOTS/indoor --dataset=sots_indoor --weights=haze
    python -m difflid_jax.evaluate --hazy=DIR --clean=DIR --weights=weights/aod_net --output=aod_net.json

Pictures that some other program restored:

    python -m difflid_jax.evaluate --hazy=DIR --clean=DIR --restored=DIR --output=theirs.json

The table goes to standard output and names the protocol (--protocol, see metrics/protocols.py).
--output=FILE.json takes the means, every image's scores, versions, seed and the weights' hash; a CSV and, for
each method, a sheet of its worst, median and best images lie beside it. Where --output is not given, a run's
go to WORKDIR/evaluation/. A data set that is not whole is refused, unless --allow-missing is given: then the
table says what was left out, and the exit status is 1.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from difflid_jax import parallel as mesh
from difflid_jax.backbones.inception import load_inception
from difflid_jax.cli import UsageError, run, use_compilation_cache
from difflid_jax.config import experiment as experiments
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.evaluation import tables as report
from difflid_jax.evaluation.methods import METHODS, Method, load_methods
from difflid_jax.evaluation.scoring import evaluate
from difflid_jax.evaluation.test_sets import TestSet, open_restored, open_test_set
from difflid_jax.metrics.lpips import CHANNELS, Lpips
from difflid_jax.metrics.protocols import PROTOCOLS


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test hands in its own `values`."""

    def define(kind, name, *rest):
        getattr(flags, f"DEFINE_{kind}")(name, *rest, flag_values=values)

    config_flags.DEFINE_config_file(
        "config", None, "Experiment whose test set is scored (not needed with --workdir).", flag_values=values
    )
    define("string", "workdir", "", "Folder of a training run: its config, its weights.")
    define("string", "data", "", "Folder of a data set.")
    define("enum", "dataset", "folders", list(LAYOUTS), "What --data holds.")
    define("string", "hazy", "", "Folder of hazy pictures.")
    define("string", "clean", "", "Folder of their ground truth.")
    define("string", "restored", "", "Folder of pictures restored elsewhere, scored instead of a method.")
    define("list", "method", [], f"A row each: {', '.join(METHODS)} (default: those of the weights).")
    define("list", "weights", [], "Shipped names, folders or LABEL=FOLDER (default: the run's, else 'haze').")
    define(
        "enum", "protocol", None, list(PROTOCOLS), "How a pair is scored (default: the config's, else paper)."
    )
    define("enum", "lpips", "alex", [*CHANNELS, "none"], "Network of LPIPS, or none to leave it out.")
    define("string", "fid", "", "Inception weights (from convert_weights.perceptual): computes the FID too.")
    define(
        "string", "tile", "off", "Restore in tiles: off, auto (as `restore` does) or their side in pixels."
    )
    define("string", "output", "", "FILE.json for the scores, with a CSV and sheets beside it.")
    define("bool", "allow_missing", False, "Score what is there of a data set that is not whole, and say so.")
    flags.DEFINE_alias("allow-missing", "allow_missing", flag_values=values)
    define("bool", "multihost", False, "Share the pictures between the processes of a cluster.")


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    use_compilation_cache()
    return score(flags.FLAGS)


def score(options: flags.FlagValues) -> int:
    """Score what the flags ask for, print the table, write the files; the exit status."""
    _check_combination(options)
    mesh.join_processes(options.multihost)
    experiment = _experiment(options)
    methods = _methods(options)
    lpips = None if options.lpips == "none" else Lpips(options.lpips)
    inception = load_inception(options.fid) if options.fid else None
    output = _output(options)
    test = _test_set(options, experiment)
    protocol = options.protocol or (experiment.evaluation.protocol if experiment else "paper")
    scored = [
        (
            method,
            evaluate(
                method.restore,
                test.pictures,
                method=method.name,
                protocol=protocol,
                lpips=lpips,
                inception=inception,
            ),
        )
        for method in methods
    ]
    if jax.process_index() == 0:
        print(f"{report.table(scored)}\n\n{report.caption(protocol, test, options.lpips)}")
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            written = report.write(output, scored, test, options.lpips)
            print(f"\nWritten: {', '.join(map(str, written))}")
    return 1 if test.left_out else 0


def _check_combination(options: flags.FlagValues) -> None:
    if bool(options.clean) != bool(options.hazy or options.restored):
        raise UsageError("--clean goes with --hazy or --restored, and they with it")
    if options.data and options.clean:
        raise UsageError("give either --data or --hazy and --clean, not both")
    if options.restored and (options.method or options.weights):
        raise UsageError("--restored is scored as it is: leave out --method and --weights")
    if options.output and not options.output.endswith(".json"):
        raise UsageError(f"--output: expected a name that ends in .json, found {options.output}")
    if not (options.clean or options.data or options.workdir or options.config):
        raise UsageError("no pictures to score: give --workdir, --data, or --hazy and --clean (see --help)")


def _experiment(options: flags.FlagValues) -> Experiment | None:
    """The experiment given by --config, or that of the run, or None."""
    experiment = None if options.config is None else experiments.resolve(options.config)
    if experiment is None and options.workdir:
        path = Path(options.workdir) / "config.json"
        if not path.is_file():
            raise UsageError(
                f"{path}: not found; --workdir names the folder of a training run (or give --config too)"
            )
        try:
            experiment = experiments.read_experiment(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: expected the config of a training run, found {error}") from error
    if experiment is None:
        return None
    if not (experiment.test.is_given or options.data or options.clean):
        raise UsageError(
            "the config names no test set: give --config.data.test=PATH with --config, or --data"
        )
    return experiment


def _test_set(options: flags.FlagValues, experiment: Experiment | None) -> TestSet:
    missing = options.allow_missing
    if options.restored:
        return open_restored(options.hazy, options.clean, options.restored, allow_missing=missing)
    if options.clean:
        return open_test_set(f"{options.hazy}|{options.clean}", allow_missing=missing)
    if options.data:
        return open_test_set(options.data, options.dataset, allow_missing=missing)
    return open_test_set(
        experiment.test.root,
        experiment.test.dataset,
        source=experiment.test.source,
        ids=experiment.test.ids,
        frame=experiment.test.frame,
        haze=experiment.haze,
        allow_missing=missing,
    )


def _methods(options: flags.FlagValues) -> list[Method]:
    if options.restored:
        return [Method("restored", lambda restored: restored)]
    weights = list(options.weights)
    if options.workdir and (not options.method or "difflid" in options.method):
        weights.insert(0, str(Path(options.workdir) / "weights"))
    return load_methods(options.method or ([] if weights else ["difflid"]), weights, tile=options.tile)


def _output(options: flags.FlagValues) -> Path | None:
    """Where the scores go: known to be writable before anything is computed, made once they are there."""
    if options.output:
        output = Path(options.output)
    elif options.workdir:
        output = Path(options.workdir) / "evaluation" / "scores.json"
    else:
        return None
    if output.is_dir():
        raise UsageError(f"--output: {output} is a folder")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return output
    except OSError as error:
        raise UsageError(f"--output: {folder} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    define_flags()
    run(main)
