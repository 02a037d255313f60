"""Score dehazing methods on a data set: PSNR, SSIM, LPIPS and, on request, FID.

The test set of a run, with the weights that its training wrote (or one row for each named method):

    python -m difflid_jax.evaluate --workdir=runs/demo --method=identity,dark_channel_prior,difflid

A data set in its own layout, or any two folders, with the shipped weights or any others:

    python -m difflid_jax.evaluate --data=/data/SOTS/indoor --dataset=sots_indoor --weights=haze
    python -m difflid_jax.evaluate --hazy=DIR --clean=DIR --weights=weights/aod_net --output=aod_net.json

Images restored by another program, or by several as RESULTS/METHOD/NAME.png for every hazy NAME:

    python -m difflid_jax.evaluate --clean=DIR --restored=DIR --output=theirs.json
    python -m difflid_jax.evaluate --hazy=DIR --clean=DIR --results=RESULTS --weights=haze --output=all.json

The table goes to standard output and names the protocol (--protocol, see metrics/protocols.py).
--output=FILE.json receives the means, every image's scores, versions, seed and the weights' hash; a CSV, for
each method a sheet of its worst, median and best images, and a sheet that compares the methods are written
next to it. Without --output, a run's scores go to WORKDIR/evaluation/. Existing files are replaced only with
--overwrite. An incomplete data set is refused unless --allow-missing is given: the table then says what was
left out, and the exit status is 1.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from difflid_jax.cli import UsageError, definer, refuse_arguments, refuse_existing, run, use_compilation_cache
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.metrics.protocols import PROTOCOLS

if TYPE_CHECKING:
    from difflid_jax.config.experiment import Experiment
    from difflid_jax.evaluation.methods import Method
    from difflid_jax.evaluation.test_sets import TestSet


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags on `values`."""
    define = definer(values)
    config_flags.DEFINE_config_file(
        "config", None, "Experiment whose test set is scored (not needed with --workdir).", flag_values=values
    )
    define("path", "workdir", "", "Workdir of a training run: its config and weights.")
    define("path", "data", "", "Root of a data set.")
    define("enum", "dataset", "folders", list(LAYOUTS), "Layout of --data.")
    define("path", "hazy", "", "Folder of hazy images.")
    define("path", "clean", "", "Folder of their ground truth.")
    define("path", "restored", "", "Folder of images restored elsewhere, scored in place of a method.")
    define("path", "results", "", "Folder with a folder of restored images for each method; adds rows.")
    define(
        "list",
        "method",
        [],
        "Rows: identity, dark_channel_prior, difflid or a network of convert_weights.peers (default: those "
        "of the weights).",
    )
    define("list", "weights", [], "Shipped names, folders or LABEL=FOLDER (default: the run's, else haze).")
    define(
        "enum", "protocol", None, list(PROTOCOLS), "How a pair is scored (default: the config's or paper)."
    )
    define("enum", "lpips", "alex", ["alex", "vgg", "none"], "Network of LPIPS; none leaves it out.")
    define("path", "fid", "", "Inception weights (from convert_weights.perceptual); adds the FID.")
    define(
        "string", "tile", "off", "Restore in tiles: off, auto (as `restore` does) or their side in pixels."
    )
    define(
        "integer", "noise_seeds", 1, "Seeds of the prior's noise: mean ± deviation over them.", lower_bound=1
    )
    define("enum", "ensemble", "none", ["none", "flip"], "flip: add rows averaged with the mirrored image.")
    define("path", "output", "", "FILE.json for the scores, with a CSV and sheets next to it.")
    define("bool", "overwrite", False, "Replace existing files of --output.")
    define("bool", "allow_missing", False, "Score an incomplete data set, and report what was left out.")
    flags.DEFINE_alias("allow-missing", "allow_missing", flag_values=values)
    define("bool", "multihost", False, "Share the images between the processes of a cluster.")


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> int:
    refuse_arguments(argv)
    _check_combination(options)
    output = _output(options)
    # Imported here so that --help and usage errors do not wait for JAX to load.
    from difflid_jax import parallel

    with parallel.processes("evaluate", options.multihost):
        return _score(options, output)


def _score(options: flags.FlagValues, output: Path | None) -> int:
    import jax

    from difflid_jax.backbones.inception import load_inception
    from difflid_jax.evaluation import tables
    from difflid_jax.evaluation.scoring import evaluate, over_seeds
    from difflid_jax.evaluation.test_sets import open_results
    from difflid_jax.metrics.lpips import Lpips

    use_compilation_cache()
    experiment = _experiment(options)
    methods = _methods(options)
    measures = {
        "protocol": options.protocol or (experiment.evaluation.protocol if experiment else "paper"),
        "lpips": None if options.lpips == "none" else Lpips(options.lpips),
        "inception": load_inception(options.fid) if options.fid else None,
    }
    test = _test_set(options, experiment)
    if options.results:
        methods += open_results(options.results, test)
    if output:
        for path in tables.paths(output, [method.name for method in methods]):
            refuse_existing(path, options.overwrite)

    def score(method: "Method"):
        restores = not options.restored and method.images is None
        images = method.images or test.images

        def once(restore, seed):
            return evaluate(restore, images, method=method.name, seed=seed, restores=restores, **measures)

        if method.with_seed is None:
            return once(method.restore, 0)
        first = method.facts["seed"]
        return over_seeds([once(method.with_seed(first + i), i) for i in range(options.noise_seeds)])

    scored = [(method, score(method)) for method in methods]
    if jax.process_index() == 0:
        written = []
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            written = tables.write(output, scored, test, options.lpips, options.noise_seeds)
        print(f"{tables.table(scored)}\n\n{tables.caption(scored, test, options.lpips, options.noise_seeds)}")
        if written:
            print(f"\nWritten: {', '.join(map(str, written))}")
    return 1 if test.left_out else 0


def _check_combination(options: flags.FlagValues) -> None:
    if bool(options.clean) != bool(options.hazy or options.restored):
        raise UsageError("--clean needs --hazy or --restored, and they need --clean")
    if options.data and options.clean:
        raise UsageError("give either --data or --hazy and --clean, not both")
    if options.restored and (options.method or options.weights or options.results):
        raise UsageError("--restored is scored alone: leave out --method, --weights and --results")
    if options.restored and (options.ensemble != "none" or options.noise_seeds > 1):
        raise UsageError("--restored restores nothing: leave out --ensemble and --noise_seeds")
    if options.dataset != "folders" and not options.data:
        raise UsageError("--dataset is the layout of --data: leave it out")
    if options.output and not options.output.endswith(".json"):
        raise UsageError(f"--output: expected a name that ends in .json, found {options.output}")
    if not (options.clean or options.data or options.workdir or options.config):
        raise UsageError("no images to score: give --workdir, --data, or --hazy and --clean (see --help)")


def _experiment(options: flags.FlagValues) -> "Experiment | None":
    """The experiment given by --config, or that of the run, or None."""
    from difflid_jax.config import experiment as experiments

    experiment = None if options.config is None else experiments.resolve(options.config)
    if experiment is None and options.workdir:
        path = Path(options.workdir) / "config.json"
        if not path.is_file():
            raise UsageError(f"{path}: not found; --workdir names the workdir of a training run")
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


def _test_set(options: flags.FlagValues, experiment: "Experiment | None") -> "TestSet":
    from difflid_jax.evaluation.test_sets import open_restored, open_test_set

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


def _methods(options: flags.FlagValues) -> "list[Method]":
    from difflid_jax.evaluation.methods import Method, load_methods

    if options.restored:
        return [Method("restored", lambda restored: restored)]
    weights = list(options.weights)
    if options.workdir and (not options.method or "difflid" in options.method):
        weights.insert(0, str(Path(options.workdir) / "weights"))
    names = options.method or ([] if weights or options.results else ["difflid"])
    methods = load_methods(names, weights, tile=options.tile) if names or weights else []
    if options.ensemble == "flip":
        # The identity has nothing to gain from averaging.
        methods += [method.flipped() for method in methods if method.name != "identity"]
    return methods


def _output(options: flags.FlagValues) -> Path | None:
    """The path of the scores: checked to be writable before anything is computed, created afterwards."""
    if options.output:
        output = Path(options.output)
    elif options.workdir:
        output = Path(options.workdir) / "evaluation" / "scores.json"
    else:
        return None
    if output.is_dir():
        raise UsageError(f"--output: {output} is a folder")
    refuse_existing(output, options.overwrite)
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return output
    except OSError as error:
        raise UsageError(f"--output: {folder} cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    run(main, define_flags)
