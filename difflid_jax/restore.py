"""Restore hazy photographs: JPEG, PNG, WebP and TIFF, of any size, with what they say about themselves.

    python -m difflid_jax.restore photo.jpg holiday/ --output=clear
    python -m difflid_jax.restore photo.jpg --output=clear --weights=runs/its --strength=0.8 --compare

Writes clear/photo.jpg and so on: same name, format, size, bit depth, metadata and colour profile; turned
upright where EXIF says so. Of a folder, the photographs directly in it are taken. With --compare, also
clear/photo.compare.png with the picture before and after (photo.jpg.compare.png where a photo.png is
restored, too). Inputs are never written to, outputs that are there already only with --overwrite. A file
that cannot be restored is named and the rest goes on; the exit status is then 1, and 2 where nothing was
begun.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import flags
from jax.errors import JaxRuntimeError
from tqdm import tqdm

from difflid_jax.cli import UsageError, one_line, run
from difflid_jax.images.files import contact_sheet, write_png
from difflid_jax.images.photos import EXTENSIONS, MAX_PIXELS, read_photo, write_photo
from difflid_jax.restoration.restorer import (
    Restorer,
    checked_strength,
    checked_tile,
    load_restorer,
    use_compilation_cache,
)

_COMPARED_WIDTH = 1024


@dataclass(frozen=True)
class Job:
    """One photograph, where it goes, and where its before-and-after sheet goes, if it gets one."""

    source: Path
    target: Path
    sheet: Path | None = None


def plan(arguments: Sequence[str], output: Path, *, compare: bool = False) -> list[Job]:
    """What to do for the files and folders in `arguments`.

    Raises UsageError if nothing should start: no photographs, an output folder that is a file or lies in a
    folder of inputs, two inputs that would become one output, an output that would be an input.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output {output}: expected a folder, found a file")
    sources: dict[Path, None] = {}
    for argument in map(Path, arguments):
        if not argument.is_dir():
            sources[argument] = None
            continue
        if output.resolve().is_relative_to(argument.resolve()):
            raise UsageError(f"--output {output}: lies in {argument}, whose photographs are to be restored")
        found = sorted(filter(_is_photograph, _files(argument)))
        if not found:
            raise UsageError(f"{argument}: no photograph in it ({', '.join(sorted(EXTENSIONS))})")
        sources |= dict.fromkeys(found)
    stems = Counter(path.stem.casefold() for path in sources)
    jobs = []
    for path in sources:
        sheet = path.stem if stems[path.stem.casefold()] == 1 else path.name
        jobs.append(Job(path, output / path.name, output / f"{sheet}.compare.png" if compare else None))
    _refuse_collisions(jobs)
    return jobs


def left_out(arguments: Sequence[str]) -> list[str]:
    """A line for every folder in `arguments` that holds files which are no photographs by their names."""
    lines = []
    for folder in filter(Path.is_dir, map(Path, arguments)):
        others = itertools.filterfalse(_is_photograph, _files(folder))
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
        if kinds:
            counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            lines.append(f"{folder}: left out, not JPEG, PNG, WebP or TIFF: {counted}")
    return lines


def restore_photographs(
    jobs: Sequence[Job],
    restorer: Restorer,
    *,
    strength: float = 1.0,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[str], None],
) -> int:
    """Restore one after the other, and return how many failed; each of those is reported in one line."""
    failed = 0
    for job in tqdm(jobs, desc="restoring", unit="photo"):
        try:
            _restore(job, restorer, strength, overwrite, max_pixels)
        except (ValueError, OSError) as error:
            said = one_line(error)
            report(
                said if str(job.source) in said or str(job.target.parent) in said else f"{job.source}: {said}"
            )
            failed += 1
        except (MemoryError, JaxRuntimeError) as error:
            if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            report(f"{job.source}: not enough memory; smaller tiles need less (--tile=384)")
            failed += 1
    return failed


def _restore(job: Job, restorer: Restorer, strength: float, overwrite: bool, max_pixels: int) -> None:
    for path in (job.target, job.sheet):
        if path is not None and path.exists() and not overwrite:
            raise FileExistsError(17, "is there already; --overwrite replaces it", str(path))
    photo = read_photo(job.source, max_pixels=max_pixels)
    with tqdm(desc=job.source.name, unit="tile", leave=False, delay=1.0) as bar:

        def on_tile(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restored = restorer.restore_pixels(photo.pixels, strength, on_tile)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    write_photo(job.target, photo.with_pixels(restored), overwrite=overwrite)
    if job.sheet is not None:
        columns = [_shown(photo.pixels), _shown(restored)]
        write_png(job.sheet, contact_sheet([columns], ["before", "after"], max_width=_COMPARED_WIDTH))


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder that are not hidden."""
    return (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _is_photograph(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    """Names are compared without case, as some file systems do."""
    taken: dict[str, Path] = {}
    sources = set().union(*(_identities(job.source) for job in jobs))
    for job in jobs:
        for path in filter(None, (job.target, job.sheet)):
            first = taken.setdefault(str(path).casefold(), job.source)
            if first is not job.source:
                raise UsageError(
                    f"{first} and {job.source} would both become {path}; restore them separately"
                )
            if not sources.isdisjoint(_identities(path)):
                raise UsageError(f"{path} is an input: name another folder as --output")


def _identities(path: Path) -> set[Path | tuple[int, int]]:
    """By either of these, two paths are known for one file: hard links share their inode."""
    try:
        found = path.stat()
    except OSError:
        return {path.resolve()}
    return {path.resolve(), (found.st_dev, found.st_ino)}


def _shown(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H,W,3) for a sheet, with fewer pixels where there are many more than it shows."""
    every = max(1, pixels.shape[1] // (2 * _COMPARED_WIDTH))
    pixels = pixels[::every, ::every]
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    if len(argv) < 2 or not options.output:
        raise UsageError("give photographs or folders of them, and --output FOLDER")
    tile, strength = checked_tile(options.tile), checked_strength(options.strength)
    output = Path(options.output)
    jobs = plan(argv[1:], output, compare=options.compare)
    for line in left_out(argv[1:]):
        print(f"restore: {line}", file=sys.stderr)
    use_compilation_cache()
    restorer = load_restorer(options.weights, prior=options.prior or None, tile=tile)
    start = time.perf_counter()
    try:
        failed = restore_photographs(
            jobs,
            restorer,
            strength=strength,
            overwrite=options.overwrite,
            max_pixels=options.max_pixels,
            report=lambda line: tqdm.write(f"restore: {line}", file=sys.stderr),
        )
    except KeyboardInterrupt:
        print("restore: interrupted; what is written is complete", file=sys.stderr)
        return 130
    done = len(jobs) - failed
    if done:
        spent = time.perf_counter() - start
        print(f"{output}: {done} photograph{'s' * (done > 1)} restored in {spent:.1f} s")
    if failed:
        print(f"restore: {failed} of {len(jobs)} could not be restored", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "Folder for the restored photographs; made where it is not there.")
    flags.DEFINE_string("weights", "haze", "Shipped name, weights folder or workdir of the restorer.")
    flags.DEFINE_string("prior", "", "The frozen model, if not where the restorer's metadata say.")
    flags.DEFINE_string(
        "tile", "auto", "auto: large photographs in tiles; off: in one piece; or the side of tiles in pixels."
    )
    flags.DEFINE_float("strength", 1.0, "From 0 (as it was) to 1 (restored).")
    flags.DEFINE_bool("compare", False, "Also write a sheet with each photograph before and after.")
    flags.DEFINE_bool("overwrite", False, "Replace outputs that are there already.")
    flags.DEFINE_integer("max_pixels", MAX_PIXELS, "Refuse larger photographs, unread.", lower_bound=1)
    run(main)
