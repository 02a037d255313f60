"""Pictures in folders and in uncompressed tars, under one name."""

import functools
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflid_jax.images.files import MAX_PIXELS, Header, decode_image, open_image, read_header, read_image
from difflid_jax.images.formats import EXTENSIONS


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

    def bytes(self) -> bytes:
        if self.member is None:
            return self.path.read_bytes()
        offset, size = members(self.path)[self.member]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def image(self) -> np.ndarray:
        """uint8 (H,W,3); raises as `images.read_image`."""
        return read_image(self.path) if self.member is None else decode_image(self.bytes(), self.name)

    def header(self) -> Header:
        """Size and kind; raises as `images.read_header`."""
        if self.member is None:
            return read_header(self.path)
        return open_image(io.BytesIO(self.bytes()), self.name, MAX_PIXELS)[1]


def find_files(root: str | os.PathLike, folder: str | None = None) -> list[File]:
    """Every picture under a folder or in a tar, in the order of the names; hidden ones are left alone.

    With `folder`, only those directly in a folder of this name: `root/folder`, anywhere within a tar.

    Raises: FileNotFoundError when there is no such path; ValueError when it is a file but no tar.
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
    return Path(path).suffix.lower() == ".tar" and Path(path).is_file()


def members(archive: Path) -> dict[str, tuple[int, int]]:
    """Name → (offset, size) of the regular files of an uncompressed tar."""
    status = archive.stat()
    return _members(archive, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _members(archive: Path, size: int, mtime: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(archive, "r:") as tar:
            found = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in tar if m.isreg()}
    except tarfile.TarError as error:
        raise ValueError(f"{archive}: no readable uncompressed tar ({error}); unpack it first") from error
    for name, (offset, length) in found.items():
        if offset + length > size:
            raise ValueError(f"{archive}: cut off within {name}; copy or download it again")
    return found
