"""Building a decoded cache: in parallel, journalled, on room that was taken before the work began."""

import errno
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from difflid_jax.atomic import write_text
from difflid_jax.data import cache_format as disk

_ALIGNMENT = 64


class Item(Protocol):
    """One array to be held: where it comes from and how it is made.

    name: what errors call it, and part of the key; the same wherever the data set lies.
    file: the file it is read from (None: it is made in memory, and `recipe` tells its content).
    recipe: what is done to the file (crop, mirror, member of an archive …), part of the key.
    """

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> Path | None: ...

    @property
    def recipe(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    def shape(self) -> tuple[int, ...]:
        """The shape, without decoding where that is possible; raises ValueError for a bad file."""
        ...

    def load(self) -> np.ndarray:
        """The array, of `shape()` and `dtype`; raises ValueError naming the file."""
        ...


def build(place: Path, key: str, items: Sequence[Item], progress: bool) -> None:
    """Decode what is missing into `<key>.building`, then rename it to `place`.

    What an interrupted build, or a damaged cache at `place`, holds with right checksums is kept.

    Raises: ValueError naming every unreadable picture, OSError where the disk does not take the cache; what
        this call began is then removed.
    """
    building = place.with_name(f"{key}.building")
    if place.exists():
        _take_apart(place, building, key)
    fresh = not building.exists()
    try:
        places, total = _layout(items, read_shapes(items, progress))
        building.mkdir(exist_ok=True)
        _decode(building, items, places, total, progress)
    except (ValueError, OSError):
        if fresh:
            shutil.rmtree(building, ignore_errors=True)
        raise
    disk.write_index(building, key, total, places)
    (building / "journal.txt").unlink()
    building.rename(place)


def read_shapes(items: Sequence[Item], progress: bool) -> list[tuple[int, ...]]:
    """The shape of every item. Raises: ValueError naming every unreadable picture (up to ten)."""

    def shape(item: Item) -> tuple[int, ...] | ValueError:
        try:
            return item.shape()
        except ValueError as error:
            return error

    with ThreadPoolExecutor(disk.cores()) as pool:
        found = pool.map(shape, items)
        shapes = list(disk.progress_bar(found, "reading sizes", len(items), "image", progress))
    _refuse([str(found) for found in shapes if isinstance(found, ValueError)])
    return shapes


def _take_apart(place: Path, building: Path, key: str) -> None:
    """Turn a damaged cache into an interrupted build."""
    index = disk.read_index(place, key)
    if index is None:
        tqdm.write(f"the decoded cache {place} is damaged: building it again", sys.stderr)
        shutil.rmtree(place)
        return
    tqdm.write(f"the decoded cache {place} is damaged: decoding the damaged pictures again", sys.stderr)
    shutil.rmtree(building, ignore_errors=True)
    place.rename(building)
    entries = (f"{i} {entry['crc32']}\n" for i, entry in enumerate(index["items"]))
    write_text(building / "journal.txt", "".join(entries))


def _layout(items: Sequence[Item], shapes: Sequence[tuple[int, ...]]) -> tuple[list[dict], int]:
    """The place of every array, and the size of the whole."""
    places, total = [], 0
    for item, shape in zip(items, shapes, strict=True):
        offset = -(-total // _ALIGNMENT) * _ALIGNMENT
        places.append({"name": item.name, "offset": offset, "shape": list(shape), "dtype": item.dtype})
        total = offset + disk.nbytes(places[-1])
    return places, total


def _decode(building: Path, items: Sequence[Item], places: list[dict], total: int, progress: bool) -> None:
    """Fill `images.bin`; every place gets its checksum."""
    done = _resume(building, places, total, progress)
    descriptor = os.open(building / "images.bin", os.O_RDWR | os.O_CREAT, 0o666)
    pool = ThreadPoolExecutor(disk.cores())
    unreadable = []
    try:
        _reserve(building, descriptor, total)
        with (
            open(building / "journal.txt", "w") as journal,
            disk.progress_bar(
                None, "decoding into the cache", len(items), "image", progress, len(done)
            ) as bar,
        ):
            for i, crc in done.items():
                places[i]["crc32"] = crc
                journal.write(f"{i} {crc}\n")
            missing = [i for i in range(len(items)) if i not in done]
            futures = {pool.submit(_write, items[i], places[i], descriptor): i for i in missing}
            for future in as_completed(futures):
                i = futures.pop(future)
                try:
                    places[i]["crc32"] = future.result()
                except ValueError as error:
                    unreadable.append(str(error))
                    continue
                journal.write(f"{i} {places[i]['crc32']}\n")
                journal.flush()
                bar.update()
        _refuse(unreadable)
        os.fsync(descriptor)
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _write(item: Item, place: dict, descriptor: int) -> int:
    """Decode an item to its place; its checksum."""
    array = np.ascontiguousarray(item.load())
    if list(array.shape) != place["shape"] or array.dtype != place["dtype"]:
        raise ValueError(
            f"{item.name}: decoded to {array.dtype} of shape {array.shape}, its header says {place['dtype']} "
            f"of shape {tuple(place['shape'])}; copy or download it again"
        )
    data = memoryview(array).cast("B")
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], place["offset"] + written)
    return zlib.crc32(data)


def _resume(building: Path, places: list[dict], total: int, progress: bool) -> dict[int, int]:
    """What an interrupted build has finished, by its journal and its checksums."""
    try:
        if (building / "images.bin").stat().st_size != total:
            return {}
        lines = [line.split() for line in (building / "journal.txt").read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    claimed = {}
    for words in lines:
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[0]) < len(places):
            claimed[int(words[0])] = places[int(words[0])] | {"crc32": int(words[1])}
    sound = disk.verify(building, list(claimed.values()), progress)
    return {i: sound[k] for k, i in enumerate(claimed) if k in sound}


def _reserve(building: Path, descriptor: int, total: int) -> None:
    """Take the whole room on the disk at once, so that a full disk is known before the work."""
    missing = total - os.fstat(descriptor).st_blocks * 512
    free = shutil.disk_usage(building).free
    if missing > free:
        raise OSError(
            errno.ENOSPC, f"the decoded pictures need {missing / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
        )
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, total)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # some file systems cannot
                raise
    os.ftruncate(descriptor, total)


def _refuse(unreadable: Sequence[str]) -> None:
    if len(unreadable) == 1:
        raise ValueError(unreadable[0])
    if unreadable:
        more = f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        raise ValueError(f"{len(unreadable)} pictures cannot be read: {'; '.join(unreadable[:10])}{more}")
