"""Pairing by file names: by key in folders, line by line in a list."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difflid_jax.data.pairing.layouts import KeyRule, Layout, find_folders, list_images, split_flat
from difflid_jax.data.pairing.report import Report, counted

_WHOLE_ITS = 13_990
OLD_ITS = "the older ITS “v0” has 110,000 hazy images and another protocol: get the standard ITS (13,990)"


@dataclass(frozen=True)
class Pair:
    """A hazy image and its clean partner; `crop` (top, left, height, width) is cut from the clean one."""

    name: str
    hazy: Path
    clean: Path
    crop: tuple[int, int, int, int] | None = None


def pairs_of_list(path: Path, report: Report) -> tuple[list[Path], list[Pair]]:
    """(hazy images, pairs) of a file of “hazy|clean” lines; its faults are added to the report.

    Raises: ValueError if it is empty or a line is malformed; OSError if it cannot be read.
    """
    report.folders = (path,)
    pairs: dict[Path, Pair] = {}
    missing, again = [], []
    for number, line in enumerate(_lines(path), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 2 or not all(parts):
            raise ValueError(f"{path}: line {number} is {line[:80]!r}; expected “hazy|clean”")
        hazy, clean = (_in_its_form(path.parent / os.path.expanduser(part)) for part in parts)
        if gone := [str(file) for file in (hazy, clean) if not file.is_file()]:
            hint = " (separate folders by / instead of \\)" if "\\" in line else ""
            missing.append(f"line {number}: {' and '.join(gone)} not found{hint}")
        elif hazy in pairs:
            again.append(f"line {number}: {parts[0]}")
        else:
            pairs[hazy] = Pair(parts[0], hazy, clean)
    if not pairs and not missing:
        raise ValueError(f"{path}: the list is empty; expected lines “hazy|clean”")
    if missing:
        report.add("omitted", f"files of {counted(len(missing), 'line')} of the list are missing", missing)
        report.absent += len(missing)
    if again:
        report.add("error", f"{counted(len(again), 'line')} of the list name a hazy image again", again)
    found = list(pairs.values())
    if len({hazy.stem for hazy in pairs}) == len(pairs):  # else the whole path tells them apart
        found = [Pair(pair.hazy.stem, pair.hazy, pair.clean) for pair in found]
    report.hazy_count, report.clean_count = len(pairs), len({pair.clean for pair in found})
    return list(pairs), found


def _in_its_form(path: Path) -> Path:
    """The path in the Unicode form (NFC or NFD) in which the file exists; unchanged if in neither."""
    forms = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((form for form in forms if form.is_file()), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a UTF-8 text file of “hazy|clean” lines ({error})") from error


def pairs_of_folders(
    root: str, layout: Layout, split: str | None, report: Report
) -> tuple[list[Path], list[Pair]]:
    """(hazy images, pairs) at or under `root`, or of “hazyDir|cleanDir”; faults are added to the report.

    Raises: ValueError or FileNotFoundError if there are no such folders or no images; ValueError for ITS
    “v0”.
    """
    if "|" in root and not Path(root).exists():
        parts = [Path(part.strip()) for part in root.split("|")]
        if len(parts) != 2:
            raise ValueError(f"{root}: expected “hazyDir|cleanDir”")
        for part in parts:
            if not part.is_dir():
                raise FileNotFoundError(2, "no such folder of images", str(part))
        degraded, clean = parts
    else:
        degraded, clean = find_folders(Path(root), report.dataset, split)
    report.folders = (degraded,) if degraded == clean else (degraded, clean)
    hazy_files, others = list_images(degraded)
    if degraded == clean:
        hazy_files, clean_files, strangers = split_flat(hazy_files)
        others += [path.name for path in strangers]
    else:
        clean_files, more = list_images(clean)
        others += more
    if others:
        report.add("note", f"{counted(len(others), 'other file')} ignored", others)
    for folder, files in ((degraded, hazy_files), (clean, clean_files)):
        if not files:
            raise ValueError(f"{folder}: no images in this folder (expected PNG, JPEG, BMP, WebP or TIFF)")
    if report.dataset == "its" and len(hazy_files) > _WHOLE_ITS:
        raise ValueError(f"{root}: {len(hazy_files):,} hazy images; {OLD_ITS}")
    hazy_files = _one_per_stem(hazy_files, report)
    clean_files = _one_per_stem(clean_files, report)
    rule = _best_rule(layout.rules, hazy_files, clean_files)
    if numbers := layout.numbers.get(split or ""):
        hazy_files, clean_files = _of_split(numbers, rule, hazy_files, clean_files, report)
    report.hazy_count, report.clean_count = len(hazy_files), len(clean_files)
    return hazy_files, _match(rule, hazy_files, clean_files, report)


def _of_split(
    numbers: range, rule: KeyRule, hazy: list[Path], clean: list[Path], report: Report
) -> tuple[list[Path], list[Path]]:
    """The files whose number belongs to the split."""
    keys = {path: rule.degraded(path.stem) for path in hazy} | {path: rule.clean(path.stem) for path in clean}
    unnumbered = [str(path) for path, key in keys.items() if not key.isdecimal()]
    if unnumbered:
        report.add("omitted", f"{counted(len(unnumbered), 'image')} without a number", unnumbered)
        report.absent += len(unnumbered)
    kept = {path: int(key) for path, key in keys.items() if key.isdecimal() and int(key) in numbers}
    gone = [str(number) for number in numbers if number not in kept.values()]
    if gone:
        report.add("omitted", f"{len(gone)} of the {len(numbers)} numbers of this split are missing", gone)
        report.absent += len(gone)
    return [path for path in hazy if path in kept], [path for path in clean if path in kept]


def _one_per_stem(files: list[Path], report: Report) -> list[Path]:
    first: dict[str, Path] = {}
    again = [f"{path.name} next to {first[path.stem].name}" for path in files
             if first.setdefault(path.stem, path) is not path]  # fmt: skip
    if again:
        words = f"{counted(len(again), 'image')} left out: the same name exists with another extension"
        report.add("omitted", words, again)
        report.absent += len(again)
    return list(first.values())


def _best_rule(rules: Sequence[KeyRule], hazy: list[Path], clean: list[Path]) -> KeyRule:
    def matched(rule: KeyRule) -> int:
        keys = {rule.clean(path.stem) for path in clean}
        return sum(rule.degraded(path.stem) in keys for path in hazy)

    return max(rules, key=matched)


def _match(rule: KeyRule, hazy_files: list[Path], clean_files: list[Path], report: Report) -> list[Pair]:
    by_key: dict[str, list[Path]] = defaultdict(list)
    for path in clean_files:
        by_key[rule.clean(path.stem)].append(path)
    pairs, lonely, ambiguous, used = [], [], [], set()
    for hazy in hazy_files:
        key = rule.degraded(hazy.stem)
        used.add(key)
        partners = by_key.get(key, [])
        if not partners:
            lonely.append(f"{hazy} has no clean “{key}”")
        elif len(partners) > 1:
            ambiguous.append(f"{hazy.name} fits {' and '.join(path.name for path in partners)}")
        else:
            pairs.append(Pair(hazy.stem, hazy, partners[0]))
    unused = [f"{path} has no hazy partner" for k, paths in by_key.items() if k not in used for path in paths]
    report.add("note", f"partners share {rule.words}")
    if lonely or unused:
        words = f"{counted(len(lonely) + len(unused), 'image')} without a partner"
        report.add("omitted", words, lonely + unused)
        report.absent += len(unused)
    if ambiguous:
        report.add("omitted", "several clean images have the same key", ambiguous)
    return pairs
