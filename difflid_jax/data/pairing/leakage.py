"""Test pictures among the training pictures: equal files, and equal photographs encoded or cropped anew."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from difflid_jax.data.pairing.duplicates import same_content
from difflid_jax.data.pairing.pairs import Pair, in_threads, load_clean
from difflid_jax.data.pairing.report import Finding

# Correlation of two thumbnails above which they show the same photograph. Among the 1,399 NYU pictures of
# RESIDE ITS the two most alike reach 0.883; RESIDE's own files of two of them, which are PNG, mirrored and
# without NYU's border, reach 0.99997.
SAME_PHOTOGRAPH = 0.95
_SIDE = 24
_BORDER = 10  # what RESIDE cuts off NYU's pictures on every side


def find_leaks(
    train: Sequence[Pair], test: Sequence[Pair], *, thorough: bool = True, progress: bool = True
) -> list[Finding]:
    """Look for pictures of `test` in `train`.

    Files are compared byte by byte; thorough also decodes the clean pictures and compares thumbnails, also
    mirrored and with RESIDE's border cut off, which finds copies in another format, size or frame.
    Returns findings (warnings), none when the two are disjoint.
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
        alike = _same_photographs(train, test, progress)
        if alike:
            words = f"{len(alike)} test photographs are also among the training photographs"
            findings.append(Finding("warning", words, tuple(alike)))
    return findings


def _same_photographs(train: Sequence[Pair], test: Sequence[Pair], progress: bool) -> list[str]:
    train_files = list({(pair.clean, pair.crop): pair for pair in train}.values())
    test_files = list({(pair.clean, pair.crop): pair for pair in test}.values())
    known = np.stack(in_threads(_thumbnails, train_files, "comparing with training pictures", progress))
    asked = np.stack(in_threads(_thumbnails, test_files, "comparing test pictures", progress))
    mirrored = asked.reshape(*asked.shape[:2], _SIDE, _SIDE)[..., ::-1].reshape(asked.shape)
    # (train, frame) × (test, frame): the best agreement over frames and mirroring.
    likeness = np.maximum(_likeness(known, asked), _likeness(known, mirrored))
    best = likeness.argmax(axis=0)
    return [
        f"{pair.clean} shows {train_files[i].clean}"
        for j, (pair, i) in enumerate(zip(test_files, best, strict=True))
        if likeness[i, j] > SAME_PHOTOGRAPH and pair.clean != train_files[i].clean
    ]


def _likeness(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    whole, framed = known[:, 0], known[:, 1]
    return np.max([whole @ asked[:, 0].T, framed @ asked[:, 0].T, whole @ asked[:, 1].T], axis=0)


def _thumbnails(pair: Pair) -> np.ndarray:
    """(2, side²) float32, zero mean and unit length: the picture, and the picture without its border."""
    grey = Image.fromarray(load_clean(pair)).convert("L")
    border = _BORDER if min(grey.size) > 20 * _BORDER else 0
    framed = grey.crop((border, border, grey.width - border, grey.height - border))
    thumbnails = [
        np.asarray(p.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32) for p in (grey, framed)
    ]
    flat = np.stack(thumbnails).reshape(2, -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
