"""How every program of the package starts and ends: flags, one-line errors, exit status.

Exit status: 0 done; 1 done, with failures named; 2 refused (bad input or flags, nothing changed);
128 + n ended by signal n.
"""

import importlib.metadata
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence

from absl import app, flags, logging

# On CPU this makes small convolutions several times faster, and training a U-Net by a sixth. XLA ends the
# process at a flag that it does not know: only for versions of jaxlib that it was tried on.
_CPU_FLAGS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type="}

# Errors that a user's input can cause. Anything else is a defect of ours and keeps its traceback.
_REFUSALS = (ValueError, OSError, KeyError, AttributeError, TypeError)


class UsageError(Exception):
    """Bad input, said in one line; ends a program with status 2."""


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parse the flags, run `main(argv)` and exit with its status.

    `UsageError`, `ValueError` and `OSError` are reported as one line on standard error (status 2); other
    exceptions are defects and keep their traceback. `main` returns the exit status (None means 0).
    """
    logging.set_verbosity(logging.ERROR)
    tune_cpu(os.environ)

    def guarded(argv: Sequence[str]) -> None:
        try:
            status = main(argv)
        except (UsageError, ValueError, OSError) as error:
            print(f"{_program_name(argv)}: {one_line(error)}", file=sys.stderr)
            status = 2
        except KeyboardInterrupt:
            status = 130
        sys.exit(status or 0)

    app.run(guarded, flags_parser=_parse_flags)


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise UsageError where `path` is there already, unless it may be replaced."""
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{os.fspath(path)}: is there already; --overwrite replaces it")


def number_range(values: Sequence[str], flag: str, lowest: float, highest: float) -> tuple[float, float]:
    """What a list flag says of a range, as numbers. Raises ValueError, naming --`flag`, for anything else."""
    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(f"--{flag}: expected two numbers, as in 0.7,1.0; found {','.join(values)}") from None
    if not lowest <= low <= high <= highest:
        raise ValueError(f"--{flag}: expected {lowest:g} ≤ low ≤ high ≤ {highest:g}, found {low:g},{high:g}")
    return low, high


def tune_cpu(environment: MutableMapping[str, str]) -> None:
    """Set the XLA flags that help on CPU, unless `environment` says anything of XLA's flags already.

    XLA reads them when JAX first computes something, so that it is early enough at a program's start.
    """
    flag = _CPU_FLAGS.get(importlib.metadata.version("jaxlib"))
    if flag and "XLA_FLAGS" not in environment:
        environment["XLA_FLAGS"] = flag


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line, without characters that would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in _message(error))


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    # ml_collections wraps a KeyError in an AttributeError, and str() of a KeyError is a repr.
    said = error
    while isinstance(said, BaseException) and isinstance(said, KeyError | AttributeError) and said.args:
        said = said.args[0]
    text = str(said)
    if "Traceback (most recent" in text:
        # config_flags hands on the whole traceback of a config file that refuses its argument.
        text = text[: text.index("Traceback (most recent")] + text.rstrip().splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def _program_name(argv: Sequence[str]) -> str:
    return argv[0].rsplit("/", 1)[-1].removesuffix(".py")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, *_REFUSALS) as error:
        print(f"{_program_name(argv)}: {one_line(error)} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)
