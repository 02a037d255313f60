"""Test images in a training set: equal files, and the same photographs encoded or cropped differently."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from difflid_jax.data.pairing.duplicates import same_content
from difflid_jax.data.pairing.pairs import Pair, load_clean
from difflid_jax.data.pairing.report import Finding
from difflid_jax.data.threads import in_threads

# Correlation of two thumbnails above which they show the same photograph. Among the 1,399 NYU images of
# RESIDE ITS the two most similar reach 0.883; RESIDE's own files of two of them, which are PNG, mirrored and
# without NYU's border, reach 0.99997.
SAME_PHOTOGRAPH = 0.95
_SIDE = 24
_BORDER = 10  # pixels that RESIDE cuts off NYU's images on every side


@dataclass(frozen=True)
class Photo:
    """A clean image to compare: its name in messages, and how to get its pixels, uint8 (H,W,3)."""

    name: str
    load: Callable[[], np.ndarray]


def find_leaks(
    train: Sequence[Pair], test: Sequence[Pair], *, thorough: bool = True, progress: bool = True
) -> list[Finding]:
    """Warnings for images of `test` that are in `train`; none if the two are disjoint.

    Files are compared byte by byte. `thorough` also compares the photographs, see `same_photographs`.
    """
    names = {path: "train" for pair in train for path in (pair.hazy, pair.clean)}
    both = [path for pair in test for path in (pair.hazy, pair.clean) if path in names]
    equal = [f"{path} is used by both" for path in dict.fromkeys(both)]
    for group in same_content([*names, *(path for pair in test for path in (pair.hazy, pair.clean))]):
        trained = [path for path in group if path in names]
        scored = [path for path in group if path not in names]
        if trained and scored:
            equal.append(f"{scored[0]} = {trained[0]}")
    findings = []
    if equal:
        findings.append(Finding("warning", f"{len(equal)} test files are also training files", tuple(equal)))
    if thorough and train and test:
        known, asked = _photos(train), _photos(test)
        same = same_photographs(thumbnails(known, progress), thumbnails(asked, progress))
        alike = [f"{asked[j].name} shows {known[i].name}" for j, i in same if asked[j].name != known[i].name]
        if alike:
            words = f"{len(alike)} test photographs are also among the training photographs"
            findings.append(Finding("warning", words, tuple(alike)))
    return findings


def thumbnails(photos: Sequence[Photo], progress: bool = True) -> np.ndarray:
    """float32 (N,2,side²), zero mean and unit length: each image, and each without RESIDE's border.

    Every image is decoded.
    """
    return np.stack(in_threads(_thumbnails, photos, "comparing images", progress))


def same_photographs(known: np.ndarray, asked: np.ndarray) -> list[tuple[int, int]]:
    """Positions (in `asked`, in `known`) of `thumbnails` of the same photograph, at most one for each asked.

    Compared as they are, mirrored, and without a border, which finds copies in another format, size or frame.
    """
    mirrored = asked.reshape(*asked.shape[:2], _SIDE, _SIDE)[..., ::-1].reshape(asked.shape)
    # (train, frame) × (test, frame): the best agreement over frames and mirroring.
    likeness = np.maximum(_likeness(known, asked), _likeness(known, mirrored))
    best = likeness.argmax(axis=0)
    return [(j, int(i)) for j, i in enumerate(best) if likeness[i, j] > SAME_PHOTOGRAPH]


def _photos(pairs: Sequence[Pair]) -> list[Photo]:
    each = {(pair.clean, pair.crop): pair for pair in pairs}.values()
    return [Photo(str(pair.clean), lambda pair=pair: load_clean(pair)) for pair in each]


def _likeness(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    whole, framed = known[:, 0], known[:, 1]
    return np.max([whole @ asked[:, 0].T, framed @ asked[:, 0].T, whole @ asked[:, 1].T], axis=0)


def _thumbnails(photo: Photo) -> np.ndarray:
    grey = Image.fromarray(photo.load()).convert("L")
    border = _BORDER if min(grey.size) > 20 * _BORDER else 0
    framed = grey.crop((border, border, grey.width - border, grey.height - border))
    small = [image.resize((_SIDE, _SIDE), Image.Resampling.BOX) for image in (grey, framed)]
    flat = np.stack([np.asarray(image, np.float32) for image in small]).reshape(2, -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
