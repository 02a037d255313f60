"""Decoded pictures in one memory-mapped file, so that a random crop reads only its window.

A cache is a folder `<key>` of raw arrays (`images.bin`) and their places (`index.json`). Its key is the
SHA-256 of the content of every source file and of what is done to it, so a changed data set is another
cache. It is built once: under another name, in parallel, with a journal from which an interrupted build
goes on, and renamed when all of it is on the disk. Every array has a checksum; a cache whose file was
touched since it was last verified is verified when it is opened, and what is damaged is decoded again.
Processes that want the same cache at the same time wait for the one that builds it.

A cache can be deleted at any time that no program uses it; those of data sets that have changed since are
of no more use.
"""

import contextlib
import fcntl
import json
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from difflid_jax.data import cache_format as disk
from difflid_jax.data.cache_build import Item, build, read_shapes

_REMEDY = "name another folder with --config.data.cache, or 'off' to decode every time"


def fingerprint(items: Sequence[Item]) -> str:
    """Hex digest over names, file sizes and recipes: cheap, the same with and without a cache."""
    sizes = {file: file.stat().st_size for file in {item.file for item in items if item.file}}
    return disk.digest([[item.name, sizes.get(item.file), item.recipe] for item in items])


class Undecoded:
    """The interface of `DecodedCache` without a cache: every read decodes (or looks into memory)."""

    def __init__(self, items: Sequence[Item], *, progress: bool = True):
        """Raises: ValueError naming every picture that cannot be read (up to ten), by their headers."""
        self._items = tuple(items)
        self._shapes = read_shapes(self._items, progress)

    def __len__(self) -> int:
        return len(self._items)

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an array."""
        return self._shapes[index]

    def read(self, index: int) -> np.ndarray:
        """The whole array."""
        return self._items[index].load()

    def window(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Rows top…top+height, columns left…left+width of an array."""
        return self.read(index)[top : top + height, left : left + width]


class DecodedCache:
    """Arrays of different shapes in a memory-mapped file; build or find one with `open_cache`."""

    def __init__(self, folder: Path):
        self.folder = folder
        places = json.loads((folder / "index.json").read_text())["items"]
        self._offsets = [place["offset"] for place in places]
        self._shapes = [tuple(place["shape"]) for place in places]
        self._dtypes = [np.dtype(place["dtype"]) for place in places]
        with open(folder / "images.bin", "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self):
        return DecodedCache, (self.folder,)

    def __len__(self) -> int:
        return len(self._offsets)

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an array."""
        return self._shapes[index]

    def read(self, index: int) -> np.ndarray:
        """The whole array, a read-only view of the file."""
        return np.ndarray(self._shapes[index], self._dtypes[index], self._memory, self._offsets[index])

    def window(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Rows top…top+height, columns left…left+width: a read-only view, nothing else is read."""
        return self.read(index)[top : top + height, left : left + width]


def open_cache(folder: str | os.PathLike, items: Sequence[Item], *, progress: bool = True) -> DecodedCache:
    """Open the cache of these items under `folder`; build, finish or repair it first where that is needed.

    Raises:
        ValueError: naming every picture that cannot be read (up to ten). A build that began with this call
            is removed again.
        OSError: the folder cannot be written, or the disk has not enough room; said before decoding.
    """
    folder = Path(folder).absolute()
    if not items:
        raise ValueError("a cache of no pictures at all: the data set is empty")
    with _remedied(folder), _leaving_no_trace(folder):
        folder.mkdir(parents=True, exist_ok=True)
        key = _key(folder, items, progress)
        if disk.is_sound(folder / key, key, progress):
            return DecodedCache(folder / key)
        with _lock(folder / f".{key}.lock"):
            if not disk.is_sound(folder / key, key, progress):
                build(folder / key, key, items, progress)
        return DecodedCache(folder / key)


def _key(folder: Path, items: Sequence[Item], progress: bool) -> str:
    files = {item.file for item in items if item.file}
    digests = disk.file_digests(folder / "digests.json", files, progress)
    described = [[item.name, digests.get(item.file), item.recipe, item.dtype] for item in items]
    return disk.digest([disk.FORMAT, described])[:20]


@contextlib.contextmanager
def _lock(path: Path):
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"waiting for another process that builds the cache in {path.parent}", sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _remedied(folder: Path):
    """Say what to do about a disk that does not take the cache."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(folder):
            raise  # a file of the data set
        message = f"{error.strerror or error}: the decoded cache cannot be kept here; {_REMEDY}"
        raise OSError(error.errno, message, str(folder)) from error


@contextlib.contextmanager
def _leaving_no_trace(folder: Path):
    """Remove the folders made on the way where nothing was kept in them."""
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        yield
    except (ValueError, OSError):
        if made and folder.is_dir() and not any(child.is_dir() for child in folder.iterdir()):
            for file in folder.iterdir():
                file.unlink()
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise
