"""The folder of a run, and the checks that nothing will go wrong with it later.

    config.json   metrics.jsonl   checkpoints/   checkpoints.lock   tensorboard/   sheets/   weights/   cache/

All checks come before the first byte is written, but for pictures that turn out to be damaged when they are
decoded into the cache: then what was made is removed again.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from difflid_jax import parallel as mesh
from difflid_jax.atomic import write_text

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


def check(workdir: Path, needed_bytes: int) -> None:
    """Refuse a workdir that cannot be written; nothing is left behind in it.

    `needed_bytes` is the most that its checkpoints will take; those that are there already count.

    Raises:
        OSError: it is no folder, cannot be written, or its disk has no room left for the checkpoints.
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
            f"--workdir: the disk of {existing} has {free / 1e9:.2f} GB left, the checkpoints of this run "
            f"take up to {missing / 1e9:.2f} GB; make room, choose another workdir, or keep fewer "
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
    """Whether there is something to resume, be it a checkpoint that was being written again."""
    names = (path.name.removeprefix("replaced.") for path in (workdir / CHECKPOINTS).glob("*"))
    return any(name.isdecimal() for name in names)


@contextlib.contextmanager
def as_it_was(folder: Path) -> Iterator[None]:
    """Where the body is refused (ValueError, OSError), leave `folder` and those above it as they were.

    That is, remove what did not exist before; a folder that did is not touched.
    """
    made = folder
    while not made.parent.exists():
        made = made.parent
    fresh = not made.exists()
    try:
        yield
    except (ValueError, OSError):
        if fresh:
            shutil.rmtree(made, ignore_errors=True)
        raise


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def create(workdir: Path, config: str) -> None:
    """Make the folder and write the config, JSON, into it."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CONFIG, config + "\n")
    mesh.wait_for_all("workdir made")
