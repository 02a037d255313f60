"""Files that are written completely or not at all: no reader sees half of one."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` on success and removed on an exception.

    Raises FileExistsError if `path` exists and `overwrite` is false. An OSError raised while the temporary
    file is written, as by a full disk, names `path`.
    """
    # Short, because the file system may not allow a name longer than that of `path`.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield temporary
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(17, "already exists; --overwrite replaces it", os.fspath(path))
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(temporary)):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; it is on disk before the file has its name."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
