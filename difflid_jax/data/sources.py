"""The sources of images: pairs on disk, TFDS, images with depth, images alone; a `DataSet` for each.

- 'folders': hazy and clean pairs in a data set's own layout (`pairing.pairs`);
- 'tfds': the same pairs in a TFDS build (`builders`);
- 'rgbd': clean images with measured depth (`rgbd`), made hazy on the fly;
- 'photographs': as 'rgbd', but images without depth get a plausible one, and an empty path stands for the
  photographs in installed packages;
- 'images': images alone, for a prior.

The last three take several folders or uncompressed tars, separated by commas; one that is listed twice
counts twice. `ids` and `frame` apply to those of them that have depth.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from difflid_jax.data import rgbd
from difflid_jax.data.cache import DecodedCache, Undecoded, fingerprint, keys_of, open_cache
from difflid_jax.data.files import File, find_files
from difflid_jax.data.items import InMemory, Item, MeasuredDepth, PlausibleDepth, StoredImage, stored_depth
from difflid_jax.data.pairing.pairs import Report, check_or_raise, find_pairs
from difflid_jax.data.photographs import photographs
from difflid_jax.images.formats import EXTENSIONS
from difflid_jax.weights.schema import check_choice

SOURCES = ("folders", "tfds", "photographs", "rgbd", "images")


class Features(Protocol):
    """Kept features of a data set's images."""

    def draw(self, element: int, flip: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Maps by name of one image, mirrored or not."""
        ...


@dataclass(frozen=True)
class DataSet:
    """Elements over a store of images.

    kind: 'pairs' (hazy, clean), 'depth' (clean, depth) or 'images'.
    elements: int (N,2), or (N,1) for images: positions in the store.
    names: one per element.
    keys: one per array of the store, hex digests of content and preparation.
    fingerprint: hex digest of all names and keys.
    report: of the pairing, if there was one.
    features: of the whole images, if they are kept.
    """

    kind: str
    store: DecodedCache | Undecoded
    elements: np.ndarray
    names: tuple[str, ...]
    fingerprint: str
    keys: tuple[str, ...] = ()
    report: Report | None = None
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.elements)

    def subset(self, indices: Sequence[int]) -> "DataSet":
        """The elements at these indices, in this order."""
        names = tuple(self.names[i] for i in indices)
        digest = hashlib.sha256("\n".join([self.fingerprint, *names]).encode()).hexdigest()
        return replace(self, elements=self.elements[list(indices)], names=names, fingerprint=digest)


def hold_out(data: DataSet, count: int, seed: int) -> tuple[DataSet, DataSet]:
    """(the rest, `count` elements drawn by `seed`), both in the order of `data`.

    Raises ValueError if fewer than one element would be left.
    """
    if not 0 < count < len(data):
        raise ValueError(f"{count} elements cannot be held out of {len(data)}")
    drawn = set(np.random.default_rng(seed).permutation(len(data))[:count].tolist())
    indices = range(len(data))
    return data.subset([i for i in indices if i not in drawn]), data.subset(sorted(drawn))


def in_memory(images: Mapping[str, np.ndarray]) -> DataSet:
    """A data set of images alone, name → uint8 (H,W,3), held in memory."""
    items = [InMemory(name, image) for name, image in images.items()]
    keys = keys_of(items, progress=False)
    elements = np.arange(len(items))[:, None]
    store = Undecoded(items, progress=False)
    return DataSet("images", store, elements, tuple(images), fingerprint(items, keys), tuple(keys))


def open_data(
    source: str,
    root: str | os.PathLike,
    *,
    ids: tuple[int, int] | tuple[()] = (),
    frame: str = "nyu_mirrored",
    dataset: str = "folders",
    split: str | None = None,
    cache: str | os.PathLike | None = None,
    sky: float = 0.0,
    allow_missing: bool = False,
    thorough: bool = False,
    progress: bool = True,
) -> DataSet:
    """Find the images of a source and prepare them for reading, through a decoded cache if one is given.

    Args:
        source: one of `SOURCES`.
        root: its path or, for the last three sources, paths separated by commas; ~ is expanded.
        ids: first and last id of the images with measured depth; () takes all.
        frame: name of `rgbd.FRAMES`, how images with measured depth are mirrored and cut.
        dataset: layout of 'folders' and 'tfds', see `pairs.find_pairs`.
        split: 'train' or 'test', of 'folders', 'tfds' and the photographs of installed packages.
        cache: folder of the decoded cache; None decodes every time.
        sky: depth of the skies of photographs with plausible depth, see `haze.plausible_depth`.
        allow_missing: use the complete pairs of a set that lacks some.
        thorough: decode every image of 'folders' once, so that damage inside one is found now.

    Raises:
        ValueError: nothing found, unpaired or unreadable images, partners of different sizes, ids where
            nothing has depth; all named.
        OSError: no such path, a cache folder that cannot be written, or a disk that lacks room.
    """
    root, report = os.path.expanduser(os.fspath(root)), None
    _check_source(source, root, ids)
    check_choice("frame", frame, rgbd.FRAMES)
    if source == "folders":
        items, elements, names, report = _paired(root, dataset, split, allow_missing, thorough, progress)
    elif source == "tfds":
        items, elements, names = _built(root, dataset, split)
    elif source == "photographs" and not root:
        items, elements, names = _carried(split or "train", sky)
        cache = None  # in memory already
    elif source == "images":
        items, elements, names = _alone(root, ids, rgbd.FRAMES[frame])
    else:
        items, elements, names = _with_depth(
            root, ids, rgbd.FRAMES[frame], plausible=source == "photographs", sky=sky
        )
    if not elements:
        raise ValueError(f"{root}: no images found (expected {', '.join(sorted(EXTENSIONS))})")
    kind = {"folders": "pairs", "tfds": "pairs", "images": "images"}.get(source, "depth")
    keys = keys_of(items, progress=progress)
    if cache is None:
        store = Undecoded(items, progress=progress)
    else:
        store = open_cache(os.path.expanduser(cache), items, keys, progress=progress)
    _check_partners(items, store, elements)
    return DataSet(
        kind, store, np.asarray(elements), tuple(names), fingerprint(items, keys), tuple(keys), report
    )


def _check_source(source: str, root: str, ids: tuple) -> None:
    check_choice("source of images", source, SOURCES)
    if not root and source != "photographs":
        raise ValueError(f"the source {source!r} needs the path of its images (--config.data.train etc.)")
    if ids and (source in ("folders", "tfds") or not root):
        remedy = "leave them out" if root else "give the path of its images, or leave them out"
        raise ValueError(f"ids select images with measured depth, which this source does not have; {remedy}")


def _paired(
    root: str, dataset: str, split: str | None, allow_missing: bool, thorough: bool, progress: bool
) -> tuple:
    found, report = find_pairs(root, dataset, split, thorough=thorough, progress=progress)
    check_or_raise(report, allow_missing=allow_missing)
    items = [
        item
        for pair in found
        for item in (StoredImage(File(pair.hazy)), StoredImage(File(pair.clean), pair.crop))
    ]
    return *_without_repeats(items, 2, [pair.name for pair in found]), report


def _built(root: str, dataset: str, split: str | None) -> tuple:
    from difflid_jax.data.builders import find_built  # TFDS takes a second to import

    found = find_built(root, dataset, split)
    items = [item for _, hazy, clean in found for item in (hazy, clean)]
    return _without_repeats(items, 2, [name for name, _, _ in found])


def _with_depth(roots: str, ids: tuple, frame: rgbd.Frame, *, plausible: bool, sky: float) -> tuple:
    items: list[Item] = []
    names = []
    for root in _roots(roots, ids):
        if rgbd.has_depth(root):
            for scene in rgbd.find_scenes(root, ids, frame.first_id):
                names.append(scene.name)
                items += StoredImage(scene.rgb, frame=frame), MeasuredDepth(scene.depth, frame)
        elif plausible:
            for file in find_files(root):
                names.append(file.stem)
                items += StoredImage(file), PlausibleDepth(StoredImage(file), sky)
        else:
            raise ValueError(
                f"{root}: expected rgb/ and depth/ with images, in a folder or an uncompressed tar (the "
                "source 'photographs' also takes images without depth)"
            )
    return _without_repeats(items, 2, names)


def _alone(roots: str, ids: tuple, frame: rgbd.Frame) -> tuple:
    items: list[Item] = []
    for root in _roots(roots, ids):
        if rgbd.has_depth(root):
            scenes = rgbd.find_scenes(root, ids, frame.first_id)
            items += [StoredImage(scene.rgb, frame=frame) for scene in scenes]
        else:
            items += [StoredImage(file) for file in find_files(root)]
    return _without_repeats(items, 1, [item.name for item in items])


def _carried(split: str, sky: float) -> tuple:
    items: list[Item] = []
    names = []
    for name, clean, depth in photographs(split, sky):
        names.append(name)
        items += InMemory(name, clean), InMemory(f"depth of {name}", stored_depth(depth, sky))
    return items, [(i, i + 1) for i in range(0, len(items), 2)], names


def _without_repeats(items: Sequence[Item], width: int, names: list[str]) -> tuple:
    """Store repeated items only once; elements have `width` items each."""
    positions: dict[Item, int] = {}
    held = [positions.setdefault(item, len(positions)) for item in items]
    return list(positions), [held[i : i + width] for i in range(0, len(held), width)], names


def _roots(roots: str, ids: tuple) -> list[str]:
    """The paths of a list separated by commas; a path that exists as written may contain commas.

    Raises: FileNotFoundError for a path that does not exist; ValueError for `ids` if none has depth.
    """
    parts = [roots] if os.path.exists(roots) else [part.strip() for part in roots.split(",")]
    found = [os.path.expanduser(part) for part in parts if part]
    for part in found:
        if not os.path.exists(part):
            hint = " (a backslash is part of a name here; separate folders by /)" if "\\" in part else ""
            raise FileNotFoundError(2, f"no such folder or tar{hint}", part)
    if ids and not any(map(rgbd.has_depth, found)):
        raise ValueError(f"{roots}: ids select images with depth, but nothing here has rgb/ and depth/")
    return found


def _check_partners(items: Sequence[Item], store: DecodedCache | Undecoded, elements: Sequence) -> None:
    for first, *partners in elements:
        for second in partners:
            if store.shape(first)[:2] != store.shape(second)[:2]:
                raise ValueError(
                    f"{items[first].name} is {store.shape(first)[:2]} (height, width) but its partner "
                    f"{items[second].name} is {store.shape(second)[:2]}; partners must have equal sizes"
                )
