"""The folders and file names of the public data sets, as data.

Layouts and counts: RESIDE (Li et al., TIP 2018), Dense-Haze (Ancuti et al., ICIP 2019), NH-HAZE (Ancuti et
al., CVPRW 2020), LOL (Wei et al., BMVC 2018), LOL-v2 (Yang et al., TIP 2021), with the folder names of
common copies.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from difflid_jax.images.formats import EXTENSIONS
from difflid_jax.weights.schema import check_choice

DEGRADED_FOLDERS = ("hazy", "haze", "in", "input", "low")
CLEAN_FOLDERS = ("gt", "clear", "clear_images", "clean", "target", "high", "normal")
_ROLE = re.compile(
    r"(?:^|(?<=[\W_]))(?:hazy|haze|input|in|low|gt|clear|clean|target|high|normal)(?=$|[\W_]|\d)", re.I
)
_DEGRADED_ROLE = re.compile(r"(?:^|[\W_])(?:hazy|haze|input|in|low)(?=$|[\W_])", re.I)
_CLEAN_ROLE = re.compile(r"(?:^|[\W_])(?:gt|clear|clean|target|high|normal)(?=$|[\W_])", re.I)
_SEARCH_DEPTH = 3
_SEARCH_FOLDERS = 5000


@dataclass(frozen=True)
class KeyRule:
    """How to compute, from a degraded and from a clean file name, the key that partners share."""

    words: str
    degraded: Callable[[str], str]
    clean: Callable[[str], str]


def _whole(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)  # macOS spells ü as u and two dots


def _number(text: str) -> str:
    return str(int(text)) if text.isdecimal() else _whole(text)


def _without_role(stem: str) -> str:
    return _number(re.sub(r"[\W_]+", "_", _ROLE.sub("", stem)).strip("_"))


SAME_NAME = KeyRule("the whole name", _whole, _whole)
BEFORE_UNDERSCORE = KeyRule(
    "the name before the first “_”", lambda stem: _number(stem.split("_")[0]), _number
)
WITHOUT_ROLE = KeyRule("the name without words such as hazy, GT, low or normal", _without_role, _without_role)


@dataclass(frozen=True)
class Layout:
    """One data set.

    title: its name in reports. rules: ways to pair its files, tried in this order.
    hints, split_hints: words in the path of the set, and of each of its splits.
    counts, numbers: pairs, and ids, of each split (None: without a split).
    name: the form of its degraded file names. levels: whether every scene has the same haze levels.
    darkened: whether degraded images are darker than clean ones.
    only_split: the TFDS split that holds a set without splits.
    """

    title: str
    rules: tuple[KeyRule, ...]
    hints: tuple[str, ...] = ()
    split_hints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts: Mapping[str | None, int] = field(default_factory=dict)
    numbers: Mapping[str, range] = field(default_factory=dict)
    name: re.Pattern[str] | None = None
    levels: bool = False
    darkened: bool = False
    only_split: str = "train"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the set."""
        return tuple(self.split_hints)

    def names_most(self, stems: Sequence[str]) -> bool:
        """Whether more than half of the degraded images have names of this set's form."""
        return self.name is not None and 2 * sum(map(bool, map(self.name.fullmatch, stems))) > len(stems)


_ANY_SPLIT = {"train": ("train",), "test": ("test", "val", "validation", "eval")}
_NUMBERED = {"train": range(1, 51), "test": range(51, 56)}

LAYOUTS: Mapping[str, Layout] = {
    "its": Layout(
        "RESIDE ITS",
        (BEFORE_UNDERSCORE, SAME_NAME),
        hints=("its", "train"),
        counts={None: 13_990},
        name=re.compile(r"(?P<scene>\d+)_(?P<level>\d+)_(?P<airlight>[01](?:\.\d+)?)"),
        levels=True,
    ),
    "sots_indoor": Layout(
        "RESIDE SOTS indoor",
        (BEFORE_UNDERSCORE, SAME_NAME),
        hints=("indoor", "nyuhaze500", "test"),
        counts={None: 500},
        only_split="test",
        name=re.compile(r"(?P<scene>\d+)_(?P<level>\d+)"),
        levels=True,
    ),
    "sots_outdoor": Layout(
        "RESIDE SOTS outdoor",
        (BEFORE_UNDERSCORE, SAME_NAME),
        hints=("outdoor",),
        counts={None: 500},
        only_split="test",
        name=re.compile(r"(?P<scene>\d+)_(?P<airlight>[01](?:\.\d+)?)_(?P<beta>\d+(?:\.\d+)?)"),
    ),
    "dense_haze": Layout(
        "Dense-Haze",
        (WITHOUT_ROLE,),
        hints=("dense",),
        split_hints=_ANY_SPLIT,
        counts={None: 55, "train": 50, "test": 5},
        numbers=_NUMBERED,
    ),
    "nh_haze": Layout(
        "NH-HAZE",
        (WITHOUT_ROLE,),
        hints=("nh",),
        split_hints=_ANY_SPLIT,
        counts={None: 55, "train": 50, "test": 5},
        numbers=_NUMBERED,
    ),
    "lol_v1": Layout(
        "LOL-v1",
        (SAME_NAME,),
        split_hints={"train": ("our485", "train"), "test": ("eval15", "test")},
        counts={"train": 485, "test": 15},
        name=re.compile(r"\d{1,3}"),
        darkened=True,
    ),
    "lol_v2_real": Layout(
        "LOL-v2 Real",
        (WITHOUT_ROLE,),
        hints=("real",),
        split_hints={"train": ("train",), "test": ("test",)},
        counts={"train": 689, "test": 100},
        name=re.compile(r"(?:low)?\d{5}"),
        darkened=True,
    ),
    "folders": Layout("two folders", (SAME_NAME, WITHOUT_ROLE, BEFORE_UNDERSCORE), split_hints=_ANY_SPLIT),
}


def layout_of(dataset: str) -> Layout:
    """The layout of a data set by name. Raises: ValueError that lists the names."""
    check_choice("data set", dataset, LAYOUTS)
    return LAYOUTS[dataset]


def find_folders(root: Path, dataset: str, split: str | None) -> tuple[Path, Path]:
    """The folders of degraded and clean images at or under `root` (the same one twice if they share it).

    Raises: FileNotFoundError if `root` does not exist; ValueError if it has no such folders, or several that
    fit equally well.
    """
    layout = layout_of(dataset)
    if not root.exists():
        hint = "; a backslash is part of a name here, separate folders by /" if "\\" in str(root) else ""
        raise FileNotFoundError(2, f"no such folder (of a data set){hint}", str(root))
    if not root.is_dir():
        raise ValueError(
            f"{root}: expected a folder, “hazyDir|cleanDir” or a .txt list of “hazy|clean” lines"
        )
    if here := _folders_in(root):
        return here
    found = [pair for folder in _descend(root) if (pair := _folders_in(folder))]
    kept = _preferred(found, layout, split, root)
    if len(kept) == 1:
        return kept[0]
    if len(kept) > 1:
        named = ", ".join(str(pair[0].parent.relative_to(root)) for pair in kept[:6])
        raise ValueError(f"{root}: several folders hold pairs ({named}); give one of them")
    others = f" (only {', '.join(str(pair[0].relative_to(root)) for pair in found[:4])})" if found else ""
    raise ValueError(
        f"{root}: no {layout.title} {f'({split}) ' if split else ''}found{others}; expected a folder named "
        f"{'|'.join(DEGRADED_FOLDERS)} next to one named {'|'.join(CLEAN_FOLDERS)}, at most "
        f"{_SEARCH_DEPTH} levels down, or give “hazyDir|cleanDir”"
    )


def list_images(folder: Path) -> tuple[list[Path], list[str]]:
    """(images by extension, names of other visible files) directly in `folder`, in natural order."""
    images, others = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "Thumbs.db" or not entry.is_file():
                continue
            path = Path(entry.path)
            (images if path.suffix.lower() in EXTENSIONS else others).append(path)
    return sorted(images, key=natural_order), sorted(path.name for path in others)


def split_flat(images: list[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Split the images of one folder by their names into (degraded, clean, neither)."""
    degraded = [path for path in images if _DEGRADED_ROLE.search(path.stem)]
    clean = [path for path in images if path not in set(degraded) and _CLEAN_ROLE.search(path.stem)]
    known = {*degraded, *clean}
    return degraded, clean, [path for path in images if path not in known]


def natural_order(path: Path) -> list[tuple[int, int | str]]:
    """A sorting key that puts 1400_2 before 1400_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _folders_in(folder: Path) -> tuple[Path, Path] | None:
    # By the target of a link: “gt” and “GT” are often the same folder.
    names = {os.path.realpath(folder / name): name for name in sorted(_subfolders(folder))}.values()
    degraded = [name for name in names if name.lower() in DEGRADED_FOLDERS]
    clean = [name for name in names if name.lower() in CLEAN_FOLDERS]
    if len(degraded) > 1 or len(clean) > 1:
        if degraded and clean:
            several = degraded if len(degraded) > 1 else clean
            raise ValueError(
                f"{folder}: both {' and '.join(several)} could be meant; give “hazyDir|cleanDir”"
            )
        return None
    if degraded and clean:
        return folder / degraded[0], folder / clean[0]
    if not degraded and not clean:
        hazy, good, _ = split_flat(list_images(folder)[0])
        if hazy and good:
            return folder, folder
    return None


def _subfolders(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))
    except PermissionError:
        return


def _descend(root: Path) -> Iterator[Path]:
    level, seen = [root], 0
    for _ in range(_SEARCH_DEPTH):
        level = [folder / name for folder in level for name in sorted(_subfolders(folder))]
        for folder in level:
            if seen == _SEARCH_FOLDERS:
                return
            seen += 1
            yield folder


def _preferred(found, layout: Layout, split: str | None, root: Path) -> list[tuple[Path, Path]]:
    def path_has(pair: tuple[Path, Path], words: tuple[str, ...]) -> bool:
        parts = [part.lower() for part in pair[0].parent.relative_to(root).parts]
        return any(word in part for word in words for part in parts)

    if split in layout.split_hints:
        other = [w for s, words in layout.split_hints.items() if s != split for w in words]
        own = layout.split_hints[split]
        found = [pair for pair in found if path_has(pair, own) or not path_has(pair, tuple(other))]
        found = [pair for pair in found if path_has(pair, own)] or found
    if len(found) > 1 and layout.hints:
        found = [pair for pair in found if path_has(pair, layout.hints)] or found
    return found
