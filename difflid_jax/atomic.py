"""Files written in one piece: nobody sees half of one, and a failure leaves what was there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when all went well and is gone otherwise.

    Raises FileExistsError where `path` is there already and `overwrite` is false.
    """
    # Short: a file system may take no longer name than that of `path`.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield temporary
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(17, "is there already; --overwrite replaces it", os.fspath(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text`, UTF-8, in one piece; it is on the disk before it has its name."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
