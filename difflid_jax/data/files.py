"""Image files in folders and in uncompressed tars, behind one interface."""

import functools
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflid_jax.images.files import MAX_PIXELS, Header, decode_image, open_image, read_header, read_image
from difflid_jax.images.formats import EXTENSIONS

_HASHED_WHOLE = 1 << 20  # bytes
_HASHED_BLOCK = 1 << 18


@dataclass(frozen=True)
class File:
    """A file in a folder (member None) or a member of a tar."""

    path: Path
    member: str | None = None

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        return Path(self.member or self.path).stem

    @property
    def suffix(self) -> str:
        return Path(self.member or self.path).suffix.lower()

    @property
    def short_name(self) -> str:
        """Folder and name: independent of where the data set is."""
        return self.member or f"{self.path.parent.name}/{self.path.name}"

    def digest(self) -> str:
        """SHA-256 of size and content; beyond 1 MiB, of the first, middle and last 256 KiB.

        A file is read only once per process unless its size or times change.
        """
        status = self.path.stat()
        return _digest(self.path, self.member, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def bytes(self) -> bytes:
        if self.member is None:
            return self.path.read_bytes()
        offset, size = members(self.path)[self.member]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def image(self) -> np.ndarray:
        """The decoded image, uint8 (H,W,3); raises as `images.read_image`."""
        return read_image(self.path) if self.member is None else decode_image(self.bytes(), self.name)

    def header(self) -> Header:
        """Size and kind, without decoding; raises as `images.read_header`."""
        if self.member is None:
            return read_header(self.path)
        return open_image(io.BytesIO(self.bytes()), self.name, MAX_PIXELS)[1]


@functools.cache
def _digest(path: Path, member: str | None, size: int, *times: int) -> str:
    start, size = (0, size) if member is None else members(path)[member]
    offsets, length = [0], size
    if size > _HASHED_WHOLE:
        offsets, length = [0, (size - _HASHED_BLOCK) // 2, size - _HASHED_BLOCK], _HASHED_BLOCK
    content = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(start + offset)
            content.update(file.read(length))
    return content.hexdigest()


def find_files(root: str | os.PathLike, folder: str | None = None) -> list[File]:
    """Every image under a folder or in a tar, sorted by name; hidden files are ignored.

    With `folder`, only those directly in a folder of this name: `root/folder`, or anywhere within a tar.

    Raises: FileNotFoundError if there is no such path; ValueError for a file that is not a tar.
    """
    root = Path(root)
    if is_tar(root):
        found = [(Path(name), File(root, name)) for name in sorted(members(root))]
        found = [(name, file) for name, file in found if folder is None or name.parent.name == folder]
    elif root.is_dir():
        here = root if folder is None else root / folder
        walk = os.walk(here) if folder is None else [next(os.walk(here), (here, [], []))]
        paths = sorted(Path(path, name) for path, _, names in walk for name in names)
        found = [(path.relative_to(root), File(path)) for path in paths]
    elif root.exists():
        raise ValueError(f"{root}: expected a folder or an uncompressed .tar")
    else:
        raise FileNotFoundError(2, "no such folder or tar", str(root))
    return [
        file
        for name, file in found
        if file.suffix in EXTENSIONS and not any(part.startswith(".") for part in name.parts)
    ]


def is_tar(path: str | os.PathLike) -> bool:
    """Whether `path` is a file named *.tar."""
    return Path(path).suffix.lower() == ".tar" and Path(path).is_file()


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name → (offset, size) of every regular file in an uncompressed tar.

    Raises: ValueError for another kind of file, or one that is cut off.
    """
    status = archive.stat()
    return _members(archive, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _members(archive: Path, size: int, mtime: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(archive, "r:") as tar:
            found = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isreg()}
    except tarfile.TarError as error:
        raise ValueError(f"{archive}: not a readable uncompressed tar ({error}); unpack it first") from error
    for name, (offset, length) in found.items():
        if offset + length > size:
            raise ValueError(f"{archive}: truncated within {name}; copy or download it again")
    return found
