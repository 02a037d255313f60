"""How every program starts and ends: flags, one-line errors, exit status, compilation cache.

Exit status: 0 done; 1 done, with failures listed; 2 refused (bad input or flags, nothing changed); 128 + n
ended by signal n.

A program module defines `define_flags(values)` and `main(argv)`, and ends with `run(main, define_flags)`. It
imports what needs JAX inside its functions, so that `--help` and a usage error answer at once.
"""

import contextlib
import importlib.metadata
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

# A flag defined by a helper of this module belongs to the program that calls it, and is listed in its --help.
flags.disclaim_key_flags()

# On CPU this makes small convolutions several times faster and the training of a U-Net about 15 % faster. XLA
# aborts on an unknown flag, so it is set only for the versions of jaxlib that it was tested with.
_CPU_FLAGS = {"0.10.2": "--xla_cpu_experimental_ynn_fusion_type="}

# Errors that a wrong flag can cause while flags and config are read.
_FLAG_ERRORS = (flags.Error, ValueError, OSError, KeyError, AttributeError, TypeError)
_HELP = {"-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}
_CACHE_BYTES = 10**9


class UsageError(Exception):
    """Bad input; the program prints the message as one line and exits with status 2."""


def run(
    main: Callable[[Sequence[str]], int | None],
    define_flags: Callable[[flags.FlagValues], object] | None = None,
) -> None:
    """Define and parse the flags, run `main(argv)` and exit with its status (None means 0).

    `UsageError`, `ValueError`, `OSError` and a JAX platform that is not available end with one line on
    standard error and status 2. Any other exception is a defect and keeps its traceback.
    """
    tolerate_any_text()
    logging.set_verbosity(logging.ERROR)
    tune_cpu(os.environ)
    if define_flags is not None:
        define_flags(flags.FLAGS)

    def guarded(argv: Sequence[str]) -> None:
        try:
            status = main(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_broken_pipe()
        except (UsageError, ValueError, OSError) as error:
            print(f"{_program_name(argv)}: {one_line(error)}", file=sys.stderr)
            status = 2
        except (RuntimeError, AssertionError) as error:
            if not _is_missing_platform(error):
                raise
            wanted = os.environ.get("JAX_PLATFORMS", "")
            print(
                f"{_program_name(argv)}: JAX finds no device for JAX_PLATFORMS={wanted!r} "
                f"({one_line(error)}); unset it to use the available devices",
                file=sys.stderr,
            )
            status = 2
        except KeyboardInterrupt:
            status = 130
        sys.exit(status or 0)

    app.run(guarded, flags_parser=_parse_flags)


def tolerate_any_text() -> None:
    """Let standard output and error escape characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None, or replaced by something that is not a text file
            stream.reconfigure(errors="backslashreplace")


def definer(values: flags.FlagValues = flags.FLAGS) -> Callable[..., None]:
    """`define(kind, name, default, …)` is absl's `DEFINE_<kind>` on `values`.

    The kind "path" is ours: a path or a weights name, of which a leading `~` is expanded.
    """

    def define(kind: str, *arguments: Any, **options: Any) -> None:
        make = partial(flags.DEFINE, _PathParser()) if kind == "path" else getattr(flags, f"DEFINE_{kind}")
        make(*arguments, flag_values=values, **options)

    return define


def expand_home(path: str) -> str:
    """`path` with a leading `~` or `~user` expanded. Raises ValueError if that home directory is unknown."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and (expanded == "~" or expanded.startswith("~/")):
        raise ValueError(f"{path}: the home directory is unknown; give the path without ~")
    return expanded


def find_config(path: str) -> str:
    """`path`, or the file of the packaged config that it names: `sots`, `configs/sots.py`, `table2:…`.

    Raises ValueError, listing the configs, for a name that is neither a file nor one of them.
    """
    name, colon, argument = path.partition(":")
    name = expand_home(name)
    if not os.path.isfile(name) and os.path.dirname(name) in ("", "configs"):
        stem = os.path.basename(name).removesuffix(".py")
        package = Path(__file__).parent
        installed, checkout = package / "configs", package.parent / "configs"
        known = {file.stem: file for folder in (checkout, installed) for file in folder.glob("[!_]*.py")}
        if stem in known:
            return f"{known[stem]}{colon}{argument}"
        raise ValueError(f"--config: expected a file or one of {', '.join(sorted(known))}, found {name!r}")
    return f"{name}{colon}{argument}"


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raise UsageError for positional arguments of a program that takes flags only."""
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}: this program takes flags only, see --help")


def refuse_existing(path: str | os.PathLike, overwrite: bool) -> None:
    """Raise UsageError if `path` exists and `overwrite` is false."""
    if not overwrite and os.path.lexists(path):
        raise UsageError(f"{os.fspath(path)}: already exists; --overwrite replaces it")


def number_range(values: Sequence[str], flag: str, lowest: float, highest: float) -> tuple[float, float]:
    """Parse the two values of a list flag as a range within [lowest, highest].

    Raises ValueError, naming --`flag`, for anything else.
    """
    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(f"--{flag}: expected two numbers, as in 0.7,1.0; found {','.join(values)}") from None
    if not lowest <= low <= high <= highest:
        raise ValueError(f"--{flag}: expected {lowest:g} ≤ low ≤ high ≤ {highest:g}, found {low:g},{high:g}")
    return low, high


def integers(values: Sequence[str], flag: str) -> list[int]:
    """The values of a list flag. Raises UsageError, naming the flag, unless all are integers."""
    try:
        return [int(value) for value in values]
    except ValueError:
        raise UsageError(f"--{flag} {','.join(values)}: expected integers separated by commas") from None


def resolve_dtype(name: str) -> str:
    """The dtype of the frozen model's arithmetic: "auto" is float32 on CPU and bfloat16 elsewhere."""
    if name != "auto":
        return name
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def tune_cpu(environment: MutableMapping[str, str]) -> None:
    """Set the XLA flags that help on CPU, unless `environment` sets XLA flags already.

    XLA reads them at JAX's first computation, so the start of a program is early enough.
    """
    flag = _CPU_FLAGS.get(importlib.metadata.version("jaxlib"))
    if flag and "XLA_FLAGS" not in environment:
        environment["XLA_FLAGS"] = flag


def use_compilation_cache() -> None:
    """Keep compiled programs between runs in the user's cache directory, if it is writable.

    Call this before anything is compiled. The directory is $XDG_CACHE_HOME/difflid_jax, else
    ~/.cache/difflid_jax, and holds at most 1 GB; the least recently used programs are removed first. A
    directory configured in JAX takes precedence. The cache only saves time: without a home directory, or with
    a damaged or read-only cache, programs are compiled again and nothing is printed.
    """
    import jax

    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = _cache_folder()
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cache_folder() -> Path | None:
    """The cache directory, created and repaired if need be; None if it cannot be used."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: relative paths are ignored
        base = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(base):  # neither HOME nor an entry in passwd
        return None
    folder = Path(base) / "difflid_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        for entry in folder.glob("*-cache"):
            # JAX stops writing to a cache if an entry lacks the file with its time of use.
            used = folder / f"{entry.name.removesuffix('-cache')}-atime"
            if not used.exists():
                used.write_bytes(bytes(8))
    except OSError:
        return None
    return folder


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line, without characters that would control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in _message(error))


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    # ml_collections wraps a KeyError in an AttributeError, and str() of a KeyError is a repr.
    inner = error
    while isinstance(inner, KeyError | AttributeError) and inner.args:
        inner = inner.args[0]
    text = str(inner)
    if "Traceback (most recent" in text:
        # config_flags passes on the whole traceback of a config file that refuses its argument.
        text = text[: text.index("Traceback (most recent")] + text.rstrip().splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def _is_missing_platform(error: Exception) -> bool:
    """Whether JAX raised `error` while it looked for devices; without the plugin it is a bare assertion."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "jax._src.xla_bridge"


def _leave_broken_pipe() -> NoReturn:
    """Exit without a message, as a program does when its reader is gone (`| head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)


def _program_name(argv: Sequence[str]) -> str:
    return argv[0].rsplit("/", 1)[-1].removesuffix(".py")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    # Not absl's own --help: it exits with status 1.
    before_separator = argv[: argv.index("--")] if "--" in argv else argv
    if _HELP.intersection(before_separator[1:]):
        try:
            print((sys.modules["__main__"].__doc__ or "").strip(), "\n\nFlags:")
            print(flags.FLAGS.main_module_help(), flush=True)
        except BrokenPipeError:
            _leave_broken_pipe()
        sys.exit(0)
    try:
        found = [
            f"--config={find_config(argument[9:])}" if argument.startswith("--config=") else argument
            for argument in before_separator
        ]
        for i in range(1, len(found)):
            if found[i - 1] == "--config":
                found[i] = find_config(found[i])
        return flags.FLAGS([*found, *argv[len(found) :]])
    except _FLAG_ERRORS as error:
        print(f"{_program_name(argv)}: {one_line(error)} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


class _PathParser(flags.ArgumentParser):
    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        return expand_home(argument)
