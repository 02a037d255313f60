"""Photographs with measured depth (NYU Depth v2 and the like), from a folder or a tar.

Layout: `rgb/<stem>.jpg|png` and `depth/<stem>.png` (grey, 8 or 16 bit, any unit), in a folder or an
uncompressed tar. The defaults are those of the NYU labelled set as RESIDE uses it: pictures mirrored left
to right, the frame [10:470, 10:630] of 480×640, and ids that count from 1 where the files count from 0.

The unit of depth does not matter: RESIDE's haze depends on d / max d, the maximum over the frame. A depth
of 8 bits has steps of 4 cm, which haze shows as contours that RESIDE's own files do not have; so every
value moves towards its smoothed neighbourhood within its own rounding interval (±½ step). Against four
files of RESIDE ITS, haze from it is 1.1 dB nearer than haze from the steps.
"""

import io
import os
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from difflid_jax.data.files import File, find_files, is_tar
from difflid_jax.images.files import MAX_PIXELS, open_image
from difflid_jax.images.formats import DECODING_ERRORS, reason

_SMOOTHING = 2.0  # pixels; the best of 1, 1.5, 2, 3, 5 on the four ITS files, by a narrow margin
_MAX_HOLES = 0.001


@dataclass(frozen=True)
class Frame:
    """How files become pictures: mirror, then crop rows top:bottom and columns left:right (None: whole)."""

    mirrored: bool = True
    crop: tuple[int, int, int, int] | None = (10, 470, 10, 630)
    first_id: int = 1  # id of the file with the number 0

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The frame of a picture (H,W,…)."""
        array = array[:, ::-1] if self.mirrored else array
        if self.crop is None:
            return array
        top, bottom, left, right = self.crop
        return array[top:bottom, left:right]

    def size(self, height: int, width: int, name: str) -> tuple[int, int]:
        """(height, width) after `apply`. Raises: ValueError when the picture is smaller than the crop."""
        if self.crop is None:
            return height, width
        top, bottom, left, right = self.crop
        if height < bottom or width < right:
            raise ValueError(
                f"{name}: {height}×{width} (height×width) is smaller than the frame of rows {top}:{bottom} "
                f"and columns {left}:{right}, which is that of NYU Depth v2; a path that ends in #whole "
                "takes the pictures as they are"
            )
        return bottom - top, right - left


NYU = Frame()
WHOLE = Frame(mirrored=False, crop=None, first_id=0)


@dataclass(frozen=True)
class Scene:
    """One picture and its depth, named by its id, or by its stem where that is no number."""

    name: str
    rgb: File
    depth: File


def has_depth(root: str | os.PathLike) -> bool:
    """Whether pictures with depth lie here."""
    if is_tar(root):
        return bool(find_files(root, "depth"))
    return os.path.isdir(os.path.join(root, "rgb")) and os.path.isdir(os.path.join(root, "depth"))


def find_scenes(root: str | os.PathLike, ids: str = "", first_id: int = 1) -> list[Scene]:
    """Scenes in the order of their numbers (or names); with `ids` ('1-1299', '3+7+10-12') only those.

    Raises:
        ValueError: no rgb/ and depth/, a picture without its partner (named), an id that is not there.
        FileNotFoundError: no such path.
    """
    rgb, depth = _by_stem(root, "rgb"), _by_stem(root, "depth")
    if not rgb or not depth:
        raise ValueError(f"{root}: expected rgb/ and depth/ with pictures, found {len(rgb)} and {len(depth)}")
    if alone := sorted(rgb.keys() ^ depth.keys()):
        raise ValueError(
            f"{root}: {len(alone)} pictures without a partner of the same name in rgb/ and depth/, "
            f"first {alone[0]!r}; add or remove them"
        )
    numbers = {stem: int(stem) + first_id for stem in rgb if stem.isdecimal()}
    stems = sorted(rgb, key=lambda stem: (numbers.get(stem, 10**9), stem))
    if ids:
        wanted = parse_ids(ids)
        if missing := sorted(wanted - set(numbers.values())):
            there = f"{min(numbers.values())}-{max(numbers.values())}" if numbers else "without numbers"
            raise ValueError(
                f"{root}: {len(missing)} of the {len(wanted)} ids {ids} are not there, first {missing[0]} "
                f"(the pictures are {there})"
            )
        stems = [stem for stem in stems if numbers.get(stem) in wanted]
    return [Scene(str(numbers.get(stem, stem)), rgb[stem], depth[stem]) for stem in stems]


def depth_size(file: File) -> tuple[int, int]:
    """(height, width) of a depth picture from its header. Raises: ValueError naming the file."""
    picture = _depth_picture(file)
    return picture.height, picture.width


def read_depth(file: File, frame: Frame) -> np.ndarray:
    """Depth as uint16 (H,W): d / max d over the frame, 65535 the farthest.

    Raises: ValueError naming the file when it is no grey picture of 8 or 16 bits, or has holes (zeros).
    """
    picture = _depth_picture(file)
    try:
        depth = np.asarray(picture).astype(np.float32)
    except DECODING_ERRORS as error:
        raise ValueError(f"{file.name}: a damaged depth picture ({reason(error)}); copy it again") from error
    holes = float(np.mean(depth <= 0))
    if holes > _MAX_HOLES:
        raise ValueError(f"{file.name}: {holes:.1%} of the depth is zero (holes); fill them first")
    if picture.mode == "L":
        depth = np.clip(gaussian_filter(depth, _SMOOTHING), depth - 0.5, depth + 0.5)
    frame.size(*depth.shape, file.name)
    return normalized(frame.apply(depth))


def normalized(depth: np.ndarray) -> np.ndarray:
    """Depth (H,W) in any unit → uint16, 65535 the farthest."""
    return np.rint(depth / depth.max() * 65535).astype(np.uint16)


def _depth_picture(file: File) -> Image.Image:
    picture, _ = open_image(io.BytesIO(file.bytes()), file.name, MAX_PIXELS)
    if picture.mode not in ("L", "I;16", "I;16B", "I"):
        raise ValueError(
            f"{file.name}: a depth picture of mode {picture.mode}, expected grey of 8 or 16 bits"
        )
    return picture


def _by_stem(root: str | os.PathLike, folder: str) -> dict[str, File]:
    files = find_files(root, folder)
    by_stem = {file.stem: file for file in files}
    if len(by_stem) < len(files):
        twice = next(file for file in files if by_stem[file.stem] is not file)
        raise ValueError(f"{root}: two pictures named {twice.stem!r} in {folder}/; keep one")
    return by_stem


def parse_ids(ids: str) -> set[int]:
    """{1, …} of '1-1299' or '3+7+10-12'. Raises: ValueError for another form."""
    numbers: set[int] = set()
    for part in ids.split("+"):
        span = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", part)
        low, high = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if low > high:
            raise ValueError(f"ids must look like '1-1299' or '3+7+10-12', not {ids!r}")
        numbers.update(range(low, high + 1))
    return numbers
