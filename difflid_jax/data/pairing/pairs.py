"""Hazy images and their clean partners, found by key, never by order, and checked before use.

Errors that usually stay silent are reported: missing partners, an uncropped ground truth (which costs
15 dB), swapped folders, mixed versions, unreadable files, duplicates, test images in the training set.
"""

import contextlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difflid_jax.data.pairing.duplicates import same_content
from difflid_jax.data.pairing.layouts import LAYOUTS, Layout, find_folders, layout_of
from difflid_jax.data.pairing.matching import OLD_ITS, Pair, pairs_of_folders, pairs_of_list
from difflid_jax.data.pairing.report import Report, check_or_raise, counted
from difflid_jax.data.threads import in_threads
from difflid_jax.images.files import Header, check_image, read_image

__all__ = ["Pair", "Report", "check_or_raise", "find_pairs", "find_parts", "load_clean", "load_pair"]

SMALLEST_SIDE = 11  # SSIM's window
_COMPARED = 16  # pairs
_BRIGHTER = 15  # of 255
_SURE_MARGIN = 20  # pixels of both sides together; RESIDE's, of 640×480 to 620×460


def load_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair as (hazy, clean), uint8 (H,W,3) of the same size.

    Raises: ValueError naming the file for an unreadable image, or both for unequal sizes.
    """
    hazy, clean = read_image(pair.hazy), load_clean(pair)
    if hazy.shape != clean.shape:
        raise ValueError(_unequal(pair.hazy, hazy.shape[:2], pair.clean, clean.shape[:2]))
    return hazy, clean


def load_clean(pair: Pair) -> np.ndarray:
    """The clean image of a pair, cropped, uint8 (H,W,3). Raises: as `read_image`."""
    clean = read_image(pair.clean)
    if pair.crop is not None:
        top, left, height, width = pair.crop
        clean = clean[top : top + height, left : left + width]
    return clean


def find_pairs(
    root: str | os.PathLike,
    dataset: str,
    split: str | None = None,
    *,
    thorough: bool = False,
    progress: bool = True,
) -> tuple[list[Pair], Report]:
    """Find and check the pairs of a data set.

    root: a folder that is or contains the data set, "hazyDir|cleanDir", or a .txt file of "hazy|clean" lines
        (relative to the file). A leading ~ is expanded.
    dataset: a name of `layouts.LAYOUTS`. split: "train", "test", or None for what is found.
    thorough: decode every image; otherwise headers and file ends are read, which misses only damage in the
        middle of a file.

    Unusable images are left out and named in the report: call `check_or_raise` before using the pairs.

    Raises: FileNotFoundError or ValueError if there is nothing to pair (no such folder, no images, no
    folders of the expected names) or the set is refused as a whole (ITS "v0").
    """
    layout = layout_of(dataset)
    if split not in (None, "train", "test"):
        raise ValueError(f"split must be train or test, found {split!r}")
    root = re.sub(
        r"(^|\|)\s*(~[^|]*)", lambda found: found[1] + os.path.expanduser(found[2]), os.fspath(root)
    )
    report = Report(layout.title, dataset, split, root, ())
    if Path(root).suffix.lower() == ".txt":
        hazy, candidates = pairs_of_list(Path(root), report)
    else:
        hazy, candidates = pairs_of_folders(root, layout, split, report)
    _check_names(hazy, layout, report)
    pairs = _check_images(candidates, report, thorough, progress)
    report.pair_count = len(pairs)
    if report.expected and len(pairs) != report.expected:
        words = f"{counted(len(pairs), 'usable pair')}, but {report.title} has {report.expected:,}"
        report.add("warning", words)
    _check_duplicates(pairs, report)
    if layout.darkened:
        _check_brightness(pairs, report)
    return pairs, report


def find_parts(
    root: str | os.PathLike, dataset: str, split: str | None = None, *, thorough: bool = False
) -> list[tuple[list[Pair], Report]]:
    """`find_pairs` for one split or, without one, for every part of the set under `root`.

    Raises: as `find_pairs`, if no part is found.
    """
    layout = layout_of(dataset)
    if split or not layout.splits or (not layout.numbers and _is_one_part(root, dataset)):
        return [find_pairs(root, dataset, split, thorough=thorough)]
    parts, refusals = {}, {}
    for part in layout.splits:
        try:
            parts[part] = find_pairs(root, dataset, part, thorough=thorough)
        except ValueError as error:
            refusals[part] = error
    if not parts:
        raise next(iter(refusals.values()))
    there = {part: found for part, found in parts.items() if found[0]} or parts
    for _, report in there.values():
        for part in layout.splits:
            if part not in there:
                report.add("note", f"the part “{part}” was not found")
    return list(there.values())


def _is_one_part(root: str | os.PathLike, dataset: str) -> bool:
    """Whether there is a single pair of folders, whose path names no part."""
    if not Path(root).is_dir():
        return True  # a list or “hazyDir|cleanDir”
    try:
        degraded, _ = find_folders(Path(root), dataset, None)
    except ValueError:
        return False
    below = str(degraded.relative_to(root).parent).lower()
    return not any(word in below for words in layout_of(dataset).split_hints.values() for word in words)


# The images themselves.


def _check_images(pairs: list[Pair], report: Report, thorough: bool, progress: bool) -> list[Pair]:
    files = list(dict.fromkeys(path for pair in pairs for path in (pair.hazy, pair.clean)))

    def check(path: Path) -> Header | str:
        try:
            return check_image(path, thorough=thorough)
        except (ValueError, OSError) as error:
            return str(error)

    headers = dict(zip(files, in_threads(check, files, "checking images", progress), strict=True))
    users = Counter(path for pair in pairs for path in (pair.hazy, pair.clean))
    damaged = [
        problem + (f" ({counted(users[path], 'pair')})" if users[path] > 1 else "")
        for path, problem in headers.items()
        if isinstance(problem, str)
    ]
    if damaged:
        report.add("omitted", f"{counted(len(damaged), 'image')} cannot be used", damaged)
    for kind, words in (
        ("grey", "in grey (read as RGB)"),
        ("alpha", "with an opaque alpha channel (dropped)"),
    ):
        named = [p.name for p, h in headers.items() if isinstance(h, Header) and h.kind == kind]
        if named:
            report.add("note", f"{counted(len(named), 'image')} {words}", named)
    return _check_sizes(pairs, headers, report)


def _check_sizes(pairs: list[Pair], headers: dict[Path, Header | str], report: Report) -> list[Pair]:
    kept, small, unequal, cropped = [], [], [], Counter()
    for pair in pairs:
        hazy, clean = headers[pair.hazy], headers[pair.clean]
        if isinstance(hazy, str) or isinstance(clean, str):
            continue
        size, clean_size = (hazy.height, hazy.width), (clean.height, clean.width)
        if min(size) < SMALLEST_SIDE:
            small.append(f"{pair.hazy} is {size[1]}×{size[0]}")
        elif size == clean_size:
            kept.append(pair)
        elif crop := _centre_crop(size, clean_size):
            cropped[f"{clean_size[1]}×{clean_size[0]} to {size[1]}×{size[0]}"] += 1
            kept.append(Pair(pair.name, pair.hazy, pair.clean, crop))
        else:
            unequal.append(_unequal(pair.hazy, size, pair.clean, clean_size))
    if small:
        words = f"{counted(len(small), 'image')} of less than {SMALLEST_SIDE} pixels a side"
        report.add("omitted", words, small)
    if unequal:
        report.add("omitted", f"{counted(len(unequal), 'pair')} of unequal sizes", unequal)
    if cropped:
        sizes = [f"{counted(count, 'pair')} from {words}" for words, count in cropped.items()]
        words = f"the clean image of {counted(sum(cropped.values()), 'pair')} is centre-cropped"
        report.add("note", words, sizes)
    sizes = [(headers[pair.hazy].height, headers[pair.hazy].width) for pair in kept]
    if sizes:
        report.smallest = (min(h for h, _ in sizes), min(w for _, w in sizes))
        report.largest = (max(h for h, _ in sizes), max(w for _, w in sizes))
    return kept


def _centre_crop(size: tuple[int, int], clean: tuple[int, int]) -> tuple[int, int, int, int] | None:
    margins = clean[0] - size[0], clean[1] - size[1]
    if min(margins) < 0 or any(margin % 2 for margin in margins):
        return None
    # A resized copy has no border: it has the same shape at another size, or is less than half the size.
    same_shape = abs(clean[0] * size[1] - clean[1] * size[0]) <= max(clean)
    doubled = same_shape and clean[0] % size[0] == clean[1] % size[1] == 0
    halved = 2 * size[0] < clean[0] or 2 * size[1] < clean[1]
    if doubled or (max(margins) > _SURE_MARGIN and (same_shape or halved)):
        return None
    return margins[0] // 2, margins[1] // 2, size[0], size[1]


def _unequal(hazy: Path, size: Sequence[int], clean: Path, clean_size: Sequence[int]) -> str:
    return (
        f"{hazy} is {size[1]}×{size[0]} but {clean} is {clean_size[1]}×{clean_size[0]} (expected equal "
        "sizes, or a clean image with an even border; was one of them resized?)"
    )


# The set as a whole.


def _check_names(hazy: list[Path], layout: Layout, report: Report) -> None:
    """Recognize the set by its file names, and look for names and levels that are strange or missing."""
    stems = [path.stem for path in hazy]
    if layout.name and not layout.names_most(stems):
        asked = layout
        alike = [other for other in LAYOUTS.values() if other.darkened == asked.darkened]
        layout = next((other for other in alike if other.names_most(stems)), asked)
        if layout is not asked:
            words = f"by their names these are images of {layout.title}, not of {asked.title}"
            report.add("note" if report.split == "test" else "warning", words)
            report.title = layout.title
    if layout.name and (strange := [path.name for path in hazy if not layout.name.fullmatch(path.stem)]):
        report.add("warning", f"{counted(len(strange), 'name')} unlike those of {layout.title}", strange)
    if layout.levels:
        _check_levels(hazy, layout, report)
    report.expected = layout.counts.get(report.split, layout.counts.get(None))


def _check_brightness(pairs: list[Pair], report: Report) -> None:
    """Detect swapped folders of a low-light set from the brightness of a few pairs."""
    means = []
    for pair in pairs[:: max(1, len(pairs) // _COMPARED)]:
        with contextlib.suppress(ValueError):  # damage in the middle of a file is found by `thorough`
            means.append([image.mean() for image in load_pair(pair)])
    if means and all(low > high + _BRIGHTER for low, high in means):
        low, high = np.mean(means, axis=0)
        words = (
            f"the degraded images are brighter than the clean ones (mean {low:.0f} against {high:.0f} of "
            "255): the two folders are swapped"
        )
        report.add("error", words)


def _check_duplicates(pairs: list[Pair], report: Report) -> None:
    hazy = {pair.hazy for pair in pairs}
    groups = same_content([*hazy, *(pair.clean for pair in pairs)])
    doubled = [[path.name for path in group if path in hazy] for group in groups]
    doubled = [" = ".join(sorted(names)) for names in doubled if len(names) > 1]
    if doubled:
        words = f"{counted(len(doubled), 'degraded image')} present more than once"
        report.add("warning", words, sorted(doubled))
    content = {path: number for number, group in enumerate(groups) for path in group}
    twins = [p.name for p in pairs if content.get(p.hazy, p.hazy) == content.get(p.clean, p.clean)]
    if twins:
        report.add("warning", f"{counted(len(twins), 'pair')} of identical images", twins)


def _check_levels(hazy: list[Path], layout: Layout, report: Report) -> None:
    """Every scene of RESIDE's indoor sets has the same haze levels, each once."""
    scenes: dict[int, dict[int, str]] = defaultdict(dict)
    mixed = []
    for path in hazy:
        if match := layout.name.fullmatch(path.stem):
            scene, level = int(match["scene"]), int(match["level"])
            if level in scenes[scene]:
                mixed.append(f"{scenes[scene][level]} and {path.name}")
            scenes[scene][level] = path.name
    levels = sorted({level for found in scenes.values() for level in found})
    if levels and levels[-1] > 10:
        strange = [name for found in scenes.values() for level, name in found.items() if level > 10]
        report.add("error", f"haze levels above 10: {OLD_ITS}", strange)
    if mixed:
        report.add("error", "two files for one scene and level: two versions are mixed", mixed)
    gone = [f"{s}_{v}" for s, found in sorted(scenes.items()) for v in levels if v not in found]
    if gone:
        report.add("omitted", f"{counted(len(gone), 'haze level')} missing that other scenes have", gone)
        report.absent += len(gone)
