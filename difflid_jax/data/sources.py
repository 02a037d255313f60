"""Where pictures come from: pairs on disk, TFDS, pictures with depth, pictures alone. One `DataSet` for all.

Sources of pairs: 'folders' (a data set's own layout, see `pairs`) and 'tfds' (see `builders`). Sources of
(clean, depth), turned hazy on the fly: 'rgbd' and 'photographs'. 'images' are pictures alone, for a prior.

Roots of 'rgbd', 'photographs' and 'images' are folders or uncompressed tars, several with commas between;
one named twice counts twice. `path#1-1299` takes only these ids of pictures with measured depth, whose
frame is that of NYU Depth v2 as RESIDE uses it; `path#whole` takes them as they are (`path#whole+0-99`: the
numbers 0 to 99 of them). Under 'photographs', pictures without measured depth get plausible depth, and the
root '' stands for those that installed packages carry.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflid_jax.data import rgbd
from difflid_jax.data.cache import DecodedCache, Item, Undecoded, fingerprint, open_cache
from difflid_jax.data.files import File, find_files
from difflid_jax.data.haze import plausible_depth
from difflid_jax.data.pairing.pairs import Report, check_or_raise, find_pairs
from difflid_jax.data.photographs import photographs
from difflid_jax.images.formats import EXTENSIONS

SOURCES = ("folders", "tfds", "photographs", "rgbd", "images")


@dataclass(frozen=True)
class DataSet:
    """Elements over a store of decoded pictures.

    kind: 'pairs' (hazy, clean), 'depth' (clean, depth) or 'images'.
    elements: int (N,2), or (N,1) for images: positions in the store.
    names: one per element. fingerprint: names, sizes and recipes of what it is made from.
    report: what the pairing has to say, where there was one.
    """

    kind: str
    store: DecodedCache | Undecoded
    elements: np.ndarray
    names: tuple[str, ...]
    fingerprint: str
    report: Report | None = None

    def __len__(self) -> int:
        return len(self.elements)


@dataclass(frozen=True)
class Picture:
    """A picture of a file, cropped or framed: an `Item` of the cache."""

    source: File
    crop: tuple[int, int, int, int] | None = None  # top, left, height, width
    frame: rgbd.Frame | None = None
    dtype: str = "uint8"

    @property
    def name(self) -> str:
        return _short_name(self.source)

    @property
    def file(self) -> Path:
        return self.source.path

    @property
    def recipe(self) -> str:
        return f"picture {self.source.member} {self.crop} {self.frame}"

    def shape(self) -> tuple[int, ...]:
        if self.crop:
            return *self.crop[2:], 3
        header = self.source.header()
        size = (header.height, header.width)
        return *(self.frame.size(*size, self.source.name) if self.frame else size), 3

    def load(self) -> np.ndarray:
        image = self.source.image()
        if self.crop:
            top, left, height, width = self.crop
            return image[top : top + height, left : left + width]
        return self.frame.apply(image) if self.frame else image


@dataclass(frozen=True)
class Depth:
    """Measured depth, uint16 d / max d over the frame: an `Item` of the cache."""

    source: File
    frame: rgbd.Frame
    dtype: str = "uint16"

    @property
    def name(self) -> str:
        return _short_name(self.source)

    @property
    def file(self) -> Path:
        return self.source.path

    @property
    def recipe(self) -> str:
        return f"depth 1 {self.source.member} {self.frame}"

    def shape(self) -> tuple[int, ...]:
        return self.frame.size(*rgbd.depth_size(self.source), self.source.name)

    def load(self) -> np.ndarray:
        return rgbd.read_depth(self.source, self.frame)


@dataclass(frozen=True)
class PlausibleDepth:
    """Made-up depth of an image, always the same for the same name: an `Item`.

    65535 is the scene's farthest point; a `sky` (see `plausible_depth`) lies behind it, so it takes float32.
    """

    picture: Picture
    sky: float = 0.0

    @property
    def dtype(self) -> str:
        return "float32" if self.sky else "uint16"

    @property
    def name(self) -> str:
        return f"depth of {self.picture.name}"

    @property
    def file(self) -> Path:
        return self.picture.file

    @property
    def recipe(self) -> str:
        sky = f" sky {self.sky:g}" if self.sky else ""
        return f"plausible depth 1{sky} of {self.picture.recipe}"

    def shape(self) -> tuple[int, ...]:
        return self.picture.shape()[:2]

    def load(self) -> np.ndarray:
        seed = zlib.crc32(self.picture.name.encode())
        depth = plausible_depth(self.picture.load(), seed, self.sky)
        return depth * np.float32(65535) if self.sky else rgbd.normalized(depth)


@dataclass(frozen=True, eq=False)
class InMemory:
    """An array that is there already: an `Item`."""

    name: str
    array: np.ndarray

    @property
    def file(self) -> None:
        return None

    @property
    def recipe(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()

    @property
    def dtype(self) -> str:
        return str(self.array.dtype)

    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def load(self) -> np.ndarray:
        return self.array


def open_data(
    source: str,
    root: str | os.PathLike,
    *,
    dataset: str = "folders",
    split: str | None = None,
    cache: str | os.PathLike = "off",
    sky: float = 0.0,
    allow_missing: bool = False,
    thorough: bool = False,
    progress: bool = True,
) -> DataSet:
    """Find the pictures of a source and make them ready to be read, through a decoded cache if one is given.

    Args:
        source: one of `SOURCES`.
        root: where it lies, see above.
        dataset, split: of 'folders' and 'tfds', see `pairs.find_pairs`; 'photographs' has 'train' and 'test'.
        cache: the folder of decoded caches, or 'off'.
        sky: depth of the skies of photographs with plausible depth, see `haze.plausible_depth`.
        allow_missing: go on with the usable pairs where others had to be left out.
        thorough: decode every picture of 'folders' once, so that damage inside one is found now.

    Raises:
        ValueError: nothing found, unpaired or unreadable pictures, partners of different sizes; named.
        OSError: no such path, a cache folder that cannot be written, or too little room on the disk.
    """
    if source not in SOURCES:
        raise ValueError(f"the source of pictures must be one of {', '.join(SOURCES)}, not {source!r}")
    root, report = os.fspath(root), None
    if not root and source != "photographs":
        raise ValueError(
            f"the source {source!r} needs the path of its pictures (--config.data.train and the like)"
        )
    if source == "folders":
        items, elements, names, report = _paired(root, dataset, split, allow_missing, thorough, progress)
    elif source == "tfds":
        items, elements, names = _built(root, dataset, split)
    elif source == "photographs" and not root:
        items, elements, names = _carried(split or "train", sky)
        cache = "off"  # in memory already
    elif source == "images":
        items, elements, names = _alone(root)
    else:
        items, elements, names = _with_depth(root, plausible=source == "photographs", sky=sky)
    if not elements:
        raise ValueError(f"{root}: no pictures here (expected {', '.join(sorted(EXTENSIONS))})")
    kind = {"folders": "pairs", "tfds": "pairs", "images": "images"}.get(source, "depth")
    if os.fspath(cache) == "off":
        store = Undecoded(items, progress=progress)
    else:
        store = open_cache(cache, items, progress=progress)
    _check_partners(items, store, elements)
    return DataSet(kind, store, np.asarray(elements), tuple(names), fingerprint(items), report)


def _paired(
    root: str, dataset: str, split: str | None, allow_missing: bool, thorough: bool, progress: bool
) -> tuple:
    found, report = find_pairs(root, dataset, split, thorough=thorough, progress=progress)
    check_or_raise(report, allow_missing=allow_missing)
    items = [
        item for pair in found for item in (Picture(File(pair.hazy)), Picture(File(pair.clean), pair.crop))
    ]
    return *_without_repeats(items, 2, [pair.name for pair in found]), report


def _built(root: str, dataset: str, split: str | None) -> tuple:
    from difflid_jax.data.builders import find_built  # TFDS takes a second to import

    found = find_built(root, dataset, split)
    items = [item for _, hazy, clean in found for item in (hazy, clean)]
    return _without_repeats(items, 2, [name for name, _, _ in found])


def _with_depth(roots: str, *, plausible: bool, sky: float) -> tuple:
    items: list[Item] = []
    names = []
    for root, ids, frame in _roots(roots):
        if rgbd.has_depth(root):
            for scene in rgbd.find_scenes(root, ids, frame.first_id):
                names.append(scene.name)
                items += Picture(scene.rgb, frame=frame), Depth(scene.depth, frame)
        elif plausible and not ids:
            for file in find_files(root):
                names.append(file.stem)
                items += Picture(file), PlausibleDepth(Picture(file), sky)
        else:
            Path(root).stat()
            raise ValueError(
                f"{root}: expected rgb/ and depth/ with pictures, in a folder or an uncompressed tar "
                "(pictures without depth can be used as the source 'photographs', without ids)"
            )
    return _without_repeats(items, 2, names)


def _alone(roots: str) -> tuple:
    items: list[Item] = []
    for root, ids, frame in _roots(roots):
        if rgbd.has_depth(root):
            scenes = rgbd.find_scenes(root, ids, frame.first_id)
            items += [Picture(scene.rgb, frame=frame) for scene in scenes]
        elif ids:
            Path(root).stat()
            raise ValueError(f"{root}: only pictures with depth in rgb/ and depth/ have ids to choose from")
        else:
            items += [Picture(file) for file in find_files(root)]
    return _without_repeats(items, 1, [item.name for item in items])


def _carried(split: str, sky: float) -> tuple:
    items: list[Item] = []
    names = []
    for name, clean, depth in photographs(split, sky):
        names.append(name)
        depth = depth * np.float32(65535) if sky else rgbd.normalized(depth)
        items += InMemory(name, clean), InMemory(f"depth of {name}", depth)
    return items, [(i, i + 1) for i in range(0, len(items), 2)], names


def _without_repeats(items: Sequence[Item], width: int, names: list[str]) -> tuple:
    """What was named twice is held once; elements of `width` items each."""
    positions: dict[Item, int] = {}
    held = [positions.setdefault(item, len(positions)) for item in items]
    return list(positions), [held[i : i + width] for i in range(0, len(held), width)], names


def _roots(roots: str) -> list[tuple[str, str, rgbd.Frame]]:
    """'a,b#1-9' → [('a', '', NYU), ('b', '1-9', NYU)]; what exists as it is written is a path."""
    if os.path.exists(roots):
        return [(roots, "", rgbd.NYU)]
    found = []
    for part in (part.strip() for part in roots.split(",")):
        if not part:
            continue
        path, _, choice = (part, "", "") if os.path.exists(part) else part.rpartition("#")
        path, choice = (path, choice) if path else (choice, "")
        words = choice.split("+")
        frame = rgbd.WHOLE if "whole" in words else rgbd.NYU
        found.append((path, "+".join(word for word in words if word != "whole"), frame))
    return found


def _check_partners(items: Sequence[Item], store: DecodedCache | Undecoded, elements: Sequence) -> None:
    for first, *partners in elements:
        for second in partners:
            if store.shape(first)[:2] != store.shape(second)[:2]:
                raise ValueError(
                    f"{items[first].name} is {store.shape(first)[:2]} (height, width) but its partner "
                    f"{items[second].name} is {store.shape(second)[:2]}; partners must be of equal size"
                )


def _short_name(file: File) -> str:
    """Folder and name: the same wherever the data set lies."""
    return file.member or f"{file.path.parent.name}/{file.path.name}"
