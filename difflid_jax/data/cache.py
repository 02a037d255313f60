"""Decoded pictures in one memory-mapped file, so that a random crop reads only its window.

A cache is a folder `<key>` of raw arrays (`images.bin`) and their places (`index.json`). Its key is the
SHA-256 of the content of every source file and of what is done to it, so a changed data set is another
cache. It is built once: under another name, in parallel, with a journal from which an interrupted build
goes on, and renamed when all of it is on the disk. Every array has a checksum; a cache whose file was
touched since it was last verified is verified when it is opened, and what is damaged is decoded again.
Processes that want the same cache at the same time wait for the one that builds it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import secrets
import shutil
import sys
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

FORMAT = 1
_ALIGNMENT = 64
_REMEDY = "name another folder with --config.data.cache, or 'off' to decode every time"


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


def fingerprint(items: Sequence[Item]) -> str:
    """Hex digest over names, file sizes and recipes: cheap, the same with and without a cache."""
    sizes = {file: file.stat().st_size for file in {item.file for item in items if item.file}}
    return _digest([[item.name, sizes.get(item.file), item.recipe] for item in items])


class Undecoded:
    """The interface of `DecodedCache` without a cache: every read decodes (or looks into memory)."""

    def __init__(self, items: Sequence[Item], *, progress: bool = True):
        self._items = tuple(items)
        self._shapes = _shapes(self._items, progress)

    def __len__(self) -> int:
        return len(self._items)

    def shape(self, index: int) -> tuple[int, ...]:
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

    @property
    def nbytes(self) -> int:
        return len(self._memory)

    def shape(self, index: int) -> tuple[int, ...]:
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
        if _is_sound(folder / key, key, progress):
            return DecodedCache(folder / key)
        with _lock(folder / f".{key}.lock"):
            if not _is_sound(folder / key, key, progress):
                _build(folder / key, key, items, progress)
        return DecodedCache(folder / key)


def _key(folder: Path, items: Sequence[Item], progress: bool) -> str:
    digests = _file_digests(folder / "digests.json", {item.file for item in items if item.file}, progress)
    described = [[item.name, digests.get(item.file), item.recipe, item.dtype] for item in items]
    return _digest([FORMAT, described])[:20]


def _file_digests(memory: Path, files: Iterable[Path], progress: bool) -> dict[Path, str]:
    """SHA-256 of every file; those unchanged since the last time (size and times) are not read again."""
    try:
        known = json.loads(memory.read_text())
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    stamps = {file: _stamp(file) for file in files}
    digests, unknown = {}, []
    for file, stamp in stamps.items():
        entry = known.get(str(file.absolute()))
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == stamp:
            digests[file] = entry[1]
        else:
            unknown.append(file)
    if unknown:
        with ThreadPoolExecutor(_cores()) as pool:
            hashed = zip(unknown, pool.map(_hash_file, unknown), strict=True)
            for file, digest in tqdm(
                hashed,
                "reading the data set",
                len(unknown),
                unit="file",
                disable=not progress,
                file=sys.stderr,
            ):
                digests[file] = digest
                known[str(file.absolute())] = [stamps[file], digest]
        # Only saves time: a cache that is there and may not be written is as good without it.
        with contextlib.suppress(PermissionError):
            _write_atomically(memory, json.dumps(known))
    return digests


def _is_sound(place: Path, key: str, progress: bool) -> bool:
    """Whether a finished cache lies here, undamaged."""
    index = _read_index(place, key)
    if index is None:
        return False
    stamp = [index["checksum"], *_stamp(place / "images.bin")]
    with contextlib.suppress(OSError, ValueError):
        if json.loads((place / "verified.json").read_text()) == stamp:
            return True
    sound = _verified(place, index["items"], progress)
    if len(sound) < len(index["items"]):
        return False
    with contextlib.suppress(OSError):
        _write_atomically(place / "verified.json", json.dumps(stamp))
    return True


def _read_index(place: Path, key: str) -> dict | None:
    try:
        index = json.loads((place / "index.json").read_text())
        body = [index["format"], index["key"], index["size"], index["items"]]
        size = (place / "images.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = index.get("checksum") == _digest(body) and index["format"] == FORMAT and index["key"] == key
    return index if whole and size == index["size"] else None


def _verified(place: Path, places: Sequence[dict], progress: bool) -> dict[int, int]:
    """Checksums by position, of the arrays whose bytes agree with them."""
    descriptor = os.open(place / "images.bin", os.O_RDONLY)
    try:
        with ThreadPoolExecutor(_cores()) as pool:
            found = pool.map(lambda p: zlib.crc32(os.pread(descriptor, _nbytes(p), p["offset"])), places)
            found = tqdm(
                zip(range(len(places)), places, found, strict=True),
                *("checking the cache", len(places)),
                unit="image",
                disable=not progress,
                file=sys.stderr,
            )
            return {i: crc for i, place, crc in found if crc == place.get("crc32")}
    finally:
        os.close(descriptor)


def _build(place: Path, key: str, items: Sequence[Item], progress: bool) -> None:
    """Decode what is missing into `<key>.building`, then rename it to `place`."""
    building = place.with_name(f"{key}.building")
    damaged = _read_index(place, key) if place.exists() else None
    if damaged:
        tqdm.write(f"the decoded cache {place} is damaged: decoding the damaged pictures again", sys.stderr)
        shutil.rmtree(building, ignore_errors=True)
        place.rename(building)
        entries = (f"{i} {p['crc32']}\n" for i, p in enumerate(damaged["items"]))
        _write_atomically(building / "journal.txt", "".join(entries))
    elif place.exists():
        tqdm.write(f"the decoded cache {place} is damaged: building it again", sys.stderr)
        shutil.rmtree(place)
    fresh = not building.exists()
    try:
        places = _layout(items, _shapes(items, progress))
        building.mkdir(exist_ok=True)
        _decode_into(building, items, places, progress)
    except (ValueError, OSError):
        if fresh:
            shutil.rmtree(building, ignore_errors=True)
        raise
    body = [FORMAT, key, _total(places), places]
    index = dict(zip(("format", "key", "size", "items"), body, strict=True), checksum=_digest(body))
    _write_atomically(building / "index.json", json.dumps(index))
    (building / "journal.txt").unlink()
    stamp = [index["checksum"], *_stamp(building / "images.bin")]
    _write_atomically(building / "verified.json", json.dumps(stamp))
    building.rename(place)


def _decode_into(building: Path, items: Sequence[Item], places: list[dict], progress: bool) -> None:
    """Fill `images.bin`; every place gets its checksum."""
    total = _total(places)
    done = _resume(building, places, total, progress)
    descriptor = os.open(building / "images.bin", os.O_RDWR | os.O_CREAT, 0o666)
    pool = ThreadPoolExecutor(_cores())
    try:
        _reserve(building, descriptor, total)
        for i, crc in done.items():
            places[i]["crc32"] = crc
        missing = [i for i in range(len(items)) if i not in done]

        def decode(i: int) -> int:
            array = np.ascontiguousarray(items[i].load())
            if list(array.shape) != places[i]["shape"] or array.dtype != places[i]["dtype"]:
                raise ValueError(
                    f"{items[i].name}: decoded to {array.dtype} of shape {array.shape}, its header says "
                    f"{places[i]['dtype']} of shape {tuple(places[i]['shape'])}; copy or download it again"
                )
            data = memoryview(array).cast("B")
            crc, written = zlib.crc32(data), 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], places[i]["offset"] + written)
            return crc

        unreadable = []
        with open(building / "journal.txt", "w") as journal:
            journal.writelines(f"{i} {crc}\n" for i, crc in done.items())
            futures = {pool.submit(decode, i): i for i in missing}
            with tqdm(
                *(None, "decoding into the cache", len(items)),
                initial=len(done),
                unit="image",
                disable=not progress,
                file=sys.stderr,
            ) as bar:
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
    sound = _verified(building, list(claimed.values()), progress)
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
        os.posix_fallocate(descriptor, 0, total)
    os.ftruncate(descriptor, total)


def _layout(items: Sequence[Item], shapes: Sequence[tuple[int, ...]]) -> list[dict]:
    places, offset = [], 0
    for item, shape in zip(items, shapes, strict=True):
        places.append({"name": item.name, "offset": offset, "shape": list(shape), "dtype": item.dtype})
        offset += -(-_nbytes(places[-1]) // _ALIGNMENT) * _ALIGNMENT
    return places


def _shapes(items: Sequence[Item], progress: bool) -> list[tuple[int, ...]]:
    def shape(item: Item):
        try:
            return item.shape()
        except ValueError as error:
            return error

    with ThreadPoolExecutor(_cores()) as pool:
        hidden = not progress or len(items) < 1000
        found = tqdm(
            pool.map(shape, items), "reading sizes", len(items), unit="image", disable=hidden, file=sys.stderr
        )
        shapes = list(found)
    _refuse([str(found) for found in shapes if isinstance(found, ValueError)])
    return shapes


def _refuse(unreadable: Sequence[str]) -> None:
    if len(unreadable) == 1:
        raise ValueError(unreadable[0])
    if unreadable:
        more = f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        raise ValueError(f"{len(unreadable)} pictures cannot be read: {'; '.join(unreadable[:10])}{more}")


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
        if error.filename is not None and not str(error.filename).startswith(str(folder)):
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
            for name in folder.iterdir():
                name.unlink()
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()
        raise


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stamp(file: Path) -> list[int]:
    """What changes when a file is written: the change time cannot be set back."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash_file(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _nbytes(place: dict) -> int:
    return int(np.prod(place["shape"], dtype=np.int64)) * np.dtype(place["dtype"]).itemsize


def _total(places: Sequence[dict]) -> int:
    return places[-1]["offset"] + _nbytes(places[-1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
