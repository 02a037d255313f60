"""Restoring files: which photographs become which outputs, without losing any.

Inputs are never written to, outputs are replaced only on request, and a file that cannot be restored is
reported while the others are restored.
"""

import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.errors import JaxRuntimeError
from jaxtyping import UInt8
from tqdm import tqdm

from difflid_jax.cli import UsageError, one_line
from difflid_jax.images.files import write_png
from difflid_jax.images.formats import EXTENSIONS
from difflid_jax.images.photos import MAX_PIXELS, Pixels, read_photo, write_photo
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.restoration.restorer import Restorer

_COMPARED_WIDTH = 1024


@dataclass(frozen=True)
class Job:
    """One photograph, its output, and the path of its before-and-after sheet, if any."""

    source: Path
    target: Path
    sheet: Path | None = None


def plan(arguments: Sequence[str], output: Path, *, compare: bool = False) -> list[Job]:
    """The jobs for the files and folders in `arguments`; for a folder, the photographs directly in it.

    Raises: UsageError if nothing should start: no photographs, an output folder that is a file, two inputs
    that would become one output, an output that would overwrite an input.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: expected a folder, found a file")
    sources: dict[Path, None] = {}
    for argument in map(Path, arguments):
        if not argument.is_dir():
            sources[argument] = None
            continue
        found = sorted(filter(_is_photograph, _files(argument)))
        if not found:
            raise UsageError(f"{argument}: no photographs found (expected {', '.join(sorted(EXTENSIONS))})")
        sources |= dict.fromkeys(found)
    stems = Counter(_folded(path.stem) for path in sources)
    jobs = []
    for path in sources:
        sheet = path.stem if stems[_folded(path.stem)] == 1 else path.name
        jobs.append(Job(path, output / path.name, output / f"{sheet}.compare.png" if compare else None))
    _refuse_collisions(jobs)
    return jobs


def left_out(arguments: Sequence[str]) -> list[str]:
    """A line for every folder in `arguments` with files that are not photographs by their names."""
    lines = []
    for folder in filter(Path.is_dir, map(Path, arguments)):
        others = itertools.filterfalse(_is_photograph, _files(folder))
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
        if kinds:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            lines.append(f"{folder}: left out {counted} (not JPEG, PNG, WebP, TIFF or BMP)")
    return lines


def restore_photographs(
    jobs: Sequence[Job],
    restorer: Restorer,
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    at_once: int = 1,
    report: Callable[[str], None],
) -> int:
    """Restore the photographs, `at_once` of them at a time, and return the number of failures.

    `report` receives a line for every failure, and for every photograph whose output lacks something, in the
    order of the jobs.
    """

    def attempt(job: Job) -> tuple[bool, str]:
        """(failed, the line to report or '')."""
        try:
            notes = _restore(job, restorer, strength, overwrite, max_pixels, shows_tiles=at_once == 1)
        except (ValueError, OSError) as error:
            line = one_line(error)
            named = any(one_line(ValueError(path)) in line for path in (job.source, job.target.parent))
            return True, line if named else f"{_printable(job.source)}: {line}"
        except (MemoryError, JaxRuntimeError) as error:
            if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return True, f"{_printable(job.source)}: out of memory; use smaller tiles (--tile=384)"
        return False, f"{_printable(job.target)}: restored without {'; '.join(notes)}" if notes else ""

    failures = 0
    with _mapping(at_once) as mapped:
        for failed, line in tqdm(mapped(attempt, jobs), "restoring", len(jobs), unit="photo"):
            failures += failed
            if line:
                report(line)
    return failures


@contextmanager
def _mapping(at_once: int) -> Iterator[Callable]:
    """`map`, or one that runs in threads; if it is interrupted, what has not begun is left out."""
    if at_once == 1:
        yield map
        return
    pool = ThreadPoolExecutor(at_once)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _restore(
    job: Job, restorer: Restorer, strength: float, overwrite: bool, max_pixels: int, shows_tiles: bool
) -> tuple[str, ...]:
    """Restore one photograph; returns what its output could not keep."""
    for path in (job.target, job.sheet):
        if path is not None and os.path.lexists(path) and not overwrite:
            raise FileExistsError(17, "already exists; --overwrite replaces it", str(path))
    photo = read_photo(job.source, max_pixels=max_pixels)
    name = _printable(job.source.name)
    with tqdm(desc=name, unit="tile", leave=False, delay=1.0, disable=not shows_tiles) as bar:

        def on_tile(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restored = restorer.restore_pixels(photo.pixels, strength, on_tile)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_photo(job.target, photo.with_pixels(restored), overwrite=overwrite)
    if job.sheet is not None:
        columns = [_shown(photo.pixels), _shown(restored)]
        write_png(job.sheet, contact_sheet([columns], ["before", "after"], max_width=_COMPARED_WIDTH))
    return photo.notes


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder that are not hidden."""
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _is_photograph(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    taken: dict[str, Path] = {}
    sources = set().union(*(_identities(job.source) for job in jobs))
    for job in jobs:
        for path in filter(None, (job.target, job.sheet)):
            first = taken.setdefault(_folded(str(path)), job.source)
            if first is not job.source:
                raise UsageError(
                    f"{first} and {job.source} would both become {path}; restore them separately"
                )
            if not sources.isdisjoint(_identities(path)):
                raise UsageError(f"{path} is an input: name another folder as --output")


def _folded(name: str) -> str:
    """A name as compared by file systems that ignore case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def _identities(path: Path) -> set[Path | tuple[int, int]]:
    """Identities of a file: two paths that share one are the same file (hard links share their inode)."""
    try:
        found = path.stat()
    except OSError:
        return {path.resolve()}
    return {path.resolve(), (found.st_dev, found.st_ino)}


def _printable(path: Path | str) -> str:
    return one_line(ValueError(os.fspath(path)))


def _shown(pixels: Pixels) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels for a sheet, reduced if there are many more than it shows."""
    every = max(1, pixels.shape[1] // (2 * _COMPARED_WIDTH))
    pixels = pixels[::every, ::every]
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
