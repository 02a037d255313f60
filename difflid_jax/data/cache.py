"""The decoded cache: one `.npy` file per array, so that a random crop reads only its rows.

An array is stored at `<folder>/<first two digits of its key>/<key>.npy`; the key covers the content of its
source and how it is prepared, so a changed image is another entry. An entry is written under a temporary name
and then renamed: any number of processes may build the same cache at once. Four bytes after the array hold
its CRC-32, which is checked when a process first reads the entry; a damaged one is decoded again. Nothing is
locked, and entries, or the whole folder, may be deleted while no program uses them.
"""

import contextlib
import errno
import functools
import io
import math
import os
import random
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from difflid_jax.atomic import atomic_write
from difflid_jax.data.items import Item, digest
from difflid_jax.data.threads import cores, in_threads

_REMEDY = "name another folder with --config.data.cache, or 'off' to decode every time"
_CHECKSUM = 4  # bytes


def keys_of(items: Sequence[Item], *, progress: bool = True) -> list[str]:
    """The key of every item; reads the files."""
    return in_threads(lambda item: item.key, items, "reading the data set", progress)


def fingerprint(items: Sequence[Item], keys: Sequence[str]) -> str:
    """Hex digest of the names, contents and preparation of all items, independent of where the files are."""
    return digest(*((item.name, key) for item, key in zip(items, keys, strict=True)))


class Undecoded:
    """The interface of `DecodedCache` without a cache: every read decodes."""

    def __init__(self, items: Sequence[Item], *, progress: bool = True):
        """Raises: ValueError naming the images whose header cannot be read (up to ten)."""
        self._items = tuple(items)
        self._shapes = _read_shapes(self._items, progress)

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
    """The interface of `Undecoded` over the files that `open_cache` has found or written.

    A file is open only while it is read, so that images take no descriptors and no memory maps.
    """

    def __init__(self, folder: Path, items: Sequence[Item], keys: Sequence[str], shapes: Sequence[tuple]):
        self.folder = folder
        self._items, self._keys, self._shapes = tuple(items), tuple(keys), tuple(shapes)
        self._sound: set[int] = set()

    def __len__(self) -> int:
        return len(self._items)

    def path(self, index: int) -> str:
        """The file of an array."""
        return _path(self.folder, self._keys[index])

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an array."""
        return self._shapes[index]

    def read(self, index: int) -> np.ndarray:
        """The whole array, read-only."""
        return self._read_rows(index, 0, self._shapes[index][0])

    def window(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Rows top…top+height, columns left…left+width, read-only; no other rows are read."""
        rows = self._read_rows(index, top, height)
        return rows[:, left : left + width]

    def _read_rows(self, index: int, top: int, height: int) -> np.ndarray:
        if index not in self._sound:
            self._make_sure(index)
        shape, dtype = self._shapes[index], self._items[index].dtype
        row = _nbytes(shape[1:], dtype)
        descriptor = os.open(self.path(index), os.O_RDONLY)
        try:
            data = os.pread(descriptor, height * row, len(_header(shape, dtype)) + top * row)
        finally:
            os.close(descriptor)
        return np.ndarray((height, *shape[1:]), dtype, data)

    def _make_sure(self, index: int) -> None:
        """Verify the checksum of an entry, and decode it again if it is damaged."""
        path, item, shape = self.path(index), self._items[index], self._shapes[index]
        header = _header(shape, item.dtype)
        with contextlib.suppress(FileNotFoundError):
            data = memoryview(Path(path).read_bytes())
            body = data[len(header) : -_CHECKSUM]
            checksum = zlib.crc32(body).to_bytes(_CHECKSUM, "little")
            if len(body) == _nbytes(shape, item.dtype) and data[-_CHECKSUM:] == checksum:
                self._sound.add(index)
                return
            tqdm.write(f"{path}: the cached {item.name} is damaged: decoding it again", sys.stderr)
        _write(path, item, shape)
        self._sound.add(index)


def open_cache(
    folder: str | os.PathLike, items: Sequence[Item], keys: Sequence[str], *, progress: bool = True
) -> DecodedCache:
    """The cache of `items`, whose keys `keys_of` gives, under `folder`; decodes what is missing.

    Raises:
        ValueError: naming the images that cannot be read (up to ten).
        OSError: the folder cannot be written, or the disk lacks room, which is checked before decoding.
    """
    folder = Path(folder).absolute()
    if not items:
        raise ValueError("the data set is empty; there is nothing to cache")
    paths = [_path(folder, key) for key in keys]
    shapes = in_threads(_shape_of_entry, zip(paths, items, strict=True), "opening the cache", progress)
    lacking = {paths[i]: i for i, shape in enumerate(shapes) if shape is None}
    headers = _read_shapes([items[i] for i in lacking.values()], progress)
    for i, shape in zip(lacking.values(), headers, strict=True):
        shapes[i] = shape
    shapes = [shape or shapes[lacking[path]] for path, shape in zip(paths, shapes, strict=True)]
    with _remedied(folder):
        _build(folder, [(path, items[i], shapes[i]) for path, i in lacking.items()], progress)
    return DecodedCache(folder, items, keys, shapes)


def _build(folder: Path, lacking: list[tuple[str, Item, tuple[int, ...]]], progress: bool) -> None:
    if not lacking:
        return
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(_nbytes(shape, item.dtype) for _, item, shape in lacking)
    free = shutil.disk_usage(folder).free
    if needed > free:
        words = f"the decoded images need {needed / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free"
        raise OSError(errno.ENOSPC, words)
    # Each process has its own order, so that several that build the same cache share the work.
    random.SystemRandom().shuffle(lacking)

    def make(entry: tuple[str, Item, tuple[int, ...]]) -> str | None:
        try:
            if _shape_of_entry(entry[:2]) is None:  # else another process has written it by now
                _write(*entry)
        except ValueError as error:
            return str(error)
        return None

    _refuse(in_threads(make, lacking, "decoding into the cache", progress, unit="image", threads=cores()))


def _write(path: str, item: Item, shape: tuple[int, ...]) -> None:
    """Decode an item into its file. Raises: ValueError if it does not have the shape of its header."""
    array = np.ascontiguousarray(item.load())
    if array.shape != shape or array.dtype != item.dtype:
        raise ValueError(
            f"{item.name}: decoded to {array.dtype} of shape {array.shape}, but its header says "
            f"{item.dtype} of shape {shape}; copy or download it again"
        )
    body = memoryview(array).cast("B")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic_write(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(_header(shape, item.dtype))
        file.write(body)
        file.write(zlib.crc32(body).to_bytes(_CHECKSUM, "little"))


def _shape_of_entry(entry: tuple[str, Item]) -> tuple[int, ...] | None:
    """The shape of a cached array; None if there is none, or one of another dtype or length."""
    path, item = entry
    try:
        with open(path, "rb") as file:
            start, size = file.read(256), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    written = re.search(rb"'shape': \(([\d, ]+)\)", start)  # NumPy's own parser takes ten times as long
    if written is None:
        return None
    shape = tuple(int(side) for side in written[1].split(b",") if side.strip())
    header = _header(shape, item.dtype)
    whole = start.startswith(header) and size == len(header) + _nbytes(shape, item.dtype) + _CHECKSUM
    return shape if whole else None


@functools.lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    stream = io.BytesIO()
    description = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _path(folder: Path, key: str) -> str:
    return f"{folder}/{key[:2]}/{key}.npy"  # a Path would take as long as reading a crop


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _read_shapes(items: Sequence[Item], progress: bool) -> list[tuple[int, ...]]:
    """The shape of every item. Raises: ValueError naming every unreadable image (up to ten)."""

    def shape(item: Item) -> tuple[int, ...] | str:
        try:
            return tuple(item.shape())
        except ValueError as error:
            return str(error)

    shapes = in_threads(shape, items, "reading sizes", progress)
    _refuse([found for found in shapes if isinstance(found, str)])
    return shapes


def _refuse(errors: Sequence[str | None]) -> None:
    errors = [error for error in errors if error]
    if len(errors) == 1:
        raise ValueError(errors[0])
    if errors:
        more = f"; and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise ValueError(f"{len(errors)} images cannot be read: {'; '.join(errors[:10])}{more}")


@contextlib.contextmanager
def _remedied(folder: Path) -> Iterator[None]:
    """Add a remedy to the error if the disk cannot hold the cache."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(folder):
            raise  # a file of the data set
        message = f"{error.strerror or error}: the decoded cache cannot be kept here; {_REMEDY}"
        raise OSError(error.errno, message, str(folder)) from error
