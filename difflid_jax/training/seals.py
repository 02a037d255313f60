"""Seals of checkpoints: the length and checksum of every file, by which later damage is detected."""

import json
import os
import warnings
import zlib
from pathlib import Path

_SEAL = "seal.json"
_STAMPED = "_CHECKPOINT_METADATA"  # Orbax writes the time of the renaming into it, after the seal


def write(folder: Path) -> None:
    """Write the seal of a complete checkpoint into its folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != _STAMPED]
    marks = {str(path.relative_to(folder)): _mark(path) for path in files}
    with (folder / _SEAL).open("w") as file:
        json.dump(marks, file)
        file.flush()
        os.fsync(file.fileno())


def set_damaged_aside(folder: Path) -> None:
    """Move damaged checkpoints of `folder` to `damaged/` next to it, each with a warning.

    Raises ValueError if no checkpoint is left.
    """
    sealed = [path for path in folder.glob("*") if path.name.isdecimal()]
    reasons = {path: reason for path in sealed if (reason := _damage(path))}
    if reasons and len(reasons) == len(sealed):
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in reasons.items())
        raise ValueError(f"{folder}: every checkpoint is damaged ({listed}); start again in another workdir")
    aside = folder.parent / "damaged"
    for path, reason in reasons.items():
        aside.mkdir(exist_ok=True)
        number = sum(1 for other in aside.glob(f"{path.name}.*"))
        path.rename(aside / f"{path.name}.{number}")
        warnings.warn(
            f"checkpoint {path} is damaged: {reason}; moved to {aside}, using the previous one", stacklevel=2
        )


def _damage(folder: Path) -> str | None:
    for name in (_STAMPED, _SEAL):
        try:
            marks = json.loads((folder / name).read_text())
        except (OSError, ValueError):
            return f"{name} cannot be read"
    for name, mark in marks.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _mark(path) != mark:
            return f"{name} differs from what was written"
    return None


def _mark(path: Path) -> list[int]:
    """[length, CRC-32] of a file."""
    crc = length = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, length = zlib.crc32(block, crc), length + len(block)
    return [length, crc]
