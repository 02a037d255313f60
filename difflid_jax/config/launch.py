"""How `train` and `pretrain` start: their flags, the run directory, the processes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from difflid_jax.cli import UsageError, definer, refuse_arguments, use_compilation_cache
from difflid_jax.config.files import run_name

# The flags belong to the program that calls, and are listed in its --help.
flags.disclaim_key_flags()


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define --config, --workdir and --multihost."""
    define = definer(values)
    config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file, or the name of one in configs/.", flag_values=values
    )
    define(
        "path",
        "workdir",
        "",
        "Run directory; created, or resumed if it exists (default: runs/NAME of the config).",
    )
    define(
        "bool",
        "multihost",
        False,
        "Run as one of several processes (SLURM and Open MPI are recognized without it).",
    )


def launch(
    program: str,
    argv: Sequence[str],
    options: flags.FlagValues,
    resolve: Callable[[Any], Any],
    train: Callable[[Any, Path], int],
) -> int:
    """Resolve the config of the flags and train it in its run directory; return the exit status."""
    from difflid_jax import parallel
    from difflid_jax.config.inputs import check_given

    refuse_arguments(argv)
    if options.config is None:
        raise UsageError("--config is not given: name a file or a config of configs/, as in --config=demo")
    folder = Path(options.workdir or Path("runs") / run_name(options["config"].config_filename))
    with parallel.processes(program, options.multihost):
        experiment = resolve(options.config)
        check_given(experiment)
        use_compilation_cache()
        return train(experiment, folder)
