"""The folder of a run, and the checks that nothing will go wrong with it later.

    config.json   metrics.jsonl   checkpoints/   tensorboard/   sheets/   weights/   cache/

All checks come before the first byte is written.
"""

import os
import shutil
import tempfile
from pathlib import Path

import jax

from difflid_jax.training import mesh

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


def check(workdir: Path, needed_bytes: int) -> None:
    """Refuse a workdir that cannot be written; nothing is left behind in it.

    Raises:
        OSError: it is no folder, cannot be written, or its disk has less than `needed_bytes` left.
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
    if free < needed_bytes:
        raise OSError(
            f"--workdir: the disk of {existing} has {free / 1e9:.2f} GB left, the checkpoints of this run "
            f"take up to {needed_bytes / 1e9:.2f} GB; make room, choose another workdir, or keep fewer "
            "(--config.training.keep)"
        )


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is something to resume."""
    return any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*"))


def create(workdir: Path, config: str) -> None:
    """Make the folder and write the config, JSON, into it."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / f".{CONFIG}"
        temporary.write_text(config + "\n")
        os.replace(temporary, workdir / CONFIG)
    mesh.wait_for_all("workdir made")
