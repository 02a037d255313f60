"""The run directory, and checks that a run in it will not fail later.

    config.json   metrics.jsonl   checkpoints/   checkpoints.lock   tensorboard/   sheets/   weights/   cache/
    finished.json

All checks come before the first byte is written, except for images that prove damaged when they are decoded
into the cache; what was created is then removed.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from difflid_jax import parallel
from difflid_jax.atomic import write_text

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
WEIGHTS = "weights"
_FINISHED = "finished.json"


def check(workdir: Path, needed_bytes: int) -> None:
    """Refuse a workdir that cannot be written; nothing is left behind in it.

    `needed_bytes` is the most that its checkpoints will take, existing ones included. Raises OSError for a
    path that is not a folder, cannot be written, or lies on a disk without room for the checkpoints.
    """
    existing = workdir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"--workdir: {existing} is a file; name a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise PermissionError(f"--workdir: {existing} cannot be written ({error.strerror})") from error
    free = shutil.disk_usage(existing).free
    missing = needed_bytes - _size(workdir / CHECKPOINTS)
    if free < missing:
        raise OSError(
            f"--workdir: the disk of {existing} has {_size_text(free)} free, but the checkpoints of "
            f"this run need up to {_size_text(missing)}; make room, choose another workdir, or keep fewer "
            "(--config.training.keep)"
        )


def check_same_run(workdir: Path, differences: Callable[[str], list[str]]) -> None:
    """Refuse to resume a run of another config.

    `differences` maps the text of the run's config.json to what differs from it. Raises ValueError that names
    every such field.
    """
    path = workdir / CONFIG
    try:
        differing = differences(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read, so its checkpoints cannot be resumed; choose another workdir"
        ) from error
    if differing:
        raise ValueError(
            f"--workdir: {workdir} holds the run of another config: {'; '.join(differing)}. "
            "Give that run's config to resume it, or another workdir"
        )


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is a run to resume, even if its only checkpoint was being replaced."""
    names = (path.name.removeprefix("replaced.") for path in (workdir / CHECKPOINTS).glob("*"))
    return any(name.isdecimal() for name in names)


def is_resumed(workdir: Path, differences: Callable[[str], list[str]]) -> bool:
    """Whether there is a run to resume; `differences` as for `check_same_run`.

    Raises ValueError if it has another config, or if it left weights that a new run would replace.
    """
    if has_checkpoints(workdir):
        check_same_run(workdir, differences)
        return True
    if (workdir / WEIGHTS).exists():
        raise ValueError(
            f"--workdir: {workdir} holds weights that a new run would replace, and no checkpoints to resume; "
            "give another workdir"
        )
    return False


@contextlib.contextmanager
def restored_on_refusal(folder: Path) -> Iterator[None]:
    """If the body raises ValueError or OSError, remove `folder` and its parents that did not exist before."""
    created = folder
    while not created.parent.exists():
        created = created.parent
    is_new = not created.exists()
    try:
        yield
    except (ValueError, OSError):
        if is_new:
            shutil.rmtree(created, ignore_errors=True)
        raise


def begin(workdir: Path, fields: Mapping[str, Any]) -> None:
    """Create the run directory, write its config, and remove the mark that it is finished."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CONFIG, json.dumps(fields, sort_keys=True, indent=2) + "\n")
        (workdir / _FINISHED).unlink(missing_ok=True)
    parallel.wait_for_all("run directory created")


def finish(workdir: Path, ending: Mapping[str, Any]) -> None:
    """Record that the run has done all that was asked for: `ending`, JSON values."""
    if jax.process_index() == 0:
        write_text(workdir / _FINISHED, json.dumps(ending, indent=2) + "\n")


def is_finished(workdir: Path, ending: Mapping[str, Any]) -> bool:
    """Whether the workdir holds weights of a run that has done all that is asked for.

    What an older version did not record counts as equal.
    """
    try:
        done = json.loads((workdir / _FINISHED).read_text())
    except (OSError, ValueError):
        return False
    return bool(done) and ending | done == ending and (workdir / WEIGHTS).is_dir()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size_text(size: int) -> str:
    """'1.50 GB', '3 kB': never a rounded zero."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"
