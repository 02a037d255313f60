"""A decoded cache on the disk: its index, its checksums, and how files are known again.

`index.json` holds, beside the format, the key and the size of `images.bin`, one entry per array (name,
offset, shape, dtype, CRC-32) and a checksum of itself. `verified.json` says which state of `images.bin`
was last found whole, so that it is read through only after something touched it.
"""

import contextlib
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from difflid_jax.atomic import write_text

FORMAT = 1


def is_sound(place: Path, key: str, progress: bool) -> bool:
    """Whether a finished cache lies at `place`, undamaged."""
    index = read_index(place, key)
    if index is None:
        return False
    current = _state(place, index["checksum"])
    with contextlib.suppress(OSError, ValueError):
        if json.loads((place / "verified.json").read_text()) == current:
            return True
    if len(verify(place, index["items"], progress)) < len(index["items"]):
        return False
    with contextlib.suppress(OSError):
        write_text(place / "verified.json", json.dumps(current))
    return True


def read_index(place: Path, key: str) -> dict | None:
    """The index of a cache; None where it is missing, damaged or of another key, or `images.bin` is short."""
    try:
        index = json.loads((place / "index.json").read_text())
        body = [index["format"], index["key"], index["size"], index["items"]]
        size = (place / "images.bin").stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = index.get("checksum") == digest(body) and body[:2] == [FORMAT, key]
    return index if whole and size == index["size"] else None


def write_index(place: Path, key: str, size: int, places: Sequence[dict]) -> None:
    """Write the index, and that `images.bin` is whole as it is now."""
    body = [FORMAT, key, size, places]
    index = dict(zip(("format", "key", "size", "items"), body, strict=True), checksum=digest(body))
    write_text(place / "index.json", json.dumps(index))
    write_text(place / "verified.json", json.dumps(_state(place, index["checksum"])))


def verify(place: Path, places: Sequence[dict], progress: bool) -> dict[int, int]:
    """Checksums by position in `places`, of the arrays whose bytes agree with theirs."""
    descriptor = os.open(place / "images.bin", os.O_RDONLY)
    try:
        with ThreadPoolExecutor(cores()) as pool:
            found = pool.map(lambda p: zlib.crc32(os.pread(descriptor, nbytes(p), p["offset"])), places)
            found = progress_bar(found, "checking the cache", len(places), "image", progress)
            return {i: crc for i, crc in enumerate(found) if crc == places[i].get("crc32")}
    finally:
        os.close(descriptor)


def file_digests(memory: Path, files: Iterable[Path], progress: bool) -> dict[Path, str]:
    """SHA-256 of every file; `memory` keeps them, so that only what has changed (size, times) is read."""
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
        with ThreadPoolExecutor(cores()) as pool:
            hashed = pool.map(_hash_file, unknown)
            hashed = progress_bar(hashed, "reading the data set", len(unknown), "file", progress)
            for file, found in zip(unknown, hashed, strict=True):
                digests[file] = found
                known[str(file.absolute())] = [stamps[file], found]
        # Only saves time: a cache that is there and may not be written is as good without it.
        with contextlib.suppress(OSError):
            write_text(memory, json.dumps(known))
    return digests


def digest(value) -> str:
    """SHA-256 of a value of plain types."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def nbytes(place: dict) -> int:
    """The bytes of one array."""
    return int(np.prod(place["shape"], dtype=np.int64)) * np.dtype(place["dtype"]).itemsize


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def progress_bar(
    iterable: Iterable | None, words: str, total: int, unit: str, shown: bool, done: int = 0
) -> tqdm:
    """A bar on standard error, for what takes longer than a second."""
    options = {"unit": unit, "delay": 1, "initial": done, "disable": not shown, "file": sys.stderr}
    return tqdm(iterable, words, total, **options)


def _state(place: Path, checksum: str) -> list:
    return [checksum, *_stamp(place / "images.bin")]


def _stamp(file: Path) -> list[int]:
    """What changes when a file is written: the change time cannot be set back."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _hash_file(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
