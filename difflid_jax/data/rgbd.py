"""Images with measured depth (NYU Depth v2 and the like), from a folder or a tar.

Layout: `rgb/<stem>.jpg|png` and `depth/<stem>.png` (grey, 8 or 16 bit, any unit), in a folder or an
uncompressed tar. The defaults are those of the NYU labelled set as RESIDE uses it: images mirrored left to
right, the frame [10:470, 10:630] of 480×640, and ids that count from 1 while the files count from 0.

The unit of depth does not matter: haze depends on d / max d. The maximum is taken over the frame, and in
RESIDE over the whole image; they were equal in all of 101 files of the labelled set. Depth of 8 bits has
steps of 4 cm. They show in haze as contours, which RESIDE's own files do not have, so every value moves
towards its smoothed neighbourhood within its own rounding interval (±½ step). On four files of RESIDE
ITS, haze made this way is 1.1 dB closer than haze made from the steps.
"""

import io
import os
import re
from collections.abc import Iterable, Mapping
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
    """How a stored image is used: mirrored, then cut to rows top:bottom and columns left:right (or whole)."""

    mirrored: bool = True
    crop: tuple[int, int, int, int] | None = (10, 470, 10, 630)
    first_id: int = 1  # id of the file with the number 0

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The frame of an image (H,W,…)."""
        array = array[:, ::-1] if self.mirrored else array
        if self.crop is None:
            return array
        top, bottom, left, right = self.crop
        return array[top:bottom, left:right]

    def size(self, height: int, width: int, name: str) -> tuple[int, int]:
        """(height, width) after `apply`. Raises: ValueError for an image smaller than the crop."""
        if self.crop is None:
            return height, width
        top, bottom, left, right = self.crop
        if height < bottom or width < right:
            raise ValueError(
                f"{name}: {height}×{width} (height×width) is smaller than the frame of rows {top}:{bottom} "
                f"and columns {left}:{right}, which is that of NYU Depth v2; the frame 'whole' "
                "(--config.data.frame) uses images as they are"
            )
        return bottom - top, right - left


FRAMES: Mapping[str, Frame] = {
    "nyu_mirrored": Frame(),
    "nyu": Frame(mirrored=False),
    "whole": Frame(mirrored=False, crop=None, first_id=0),
}


@dataclass(frozen=True)
class Scene:
    """One image and its depth, named by its id, or by its stem if that is not a number."""

    name: str
    rgb: File
    depth: File


def has_depth(root: str | os.PathLike) -> bool:
    """Whether `root` holds images with depth."""
    if is_tar(root):
        return bool(find_files(root, "depth"))
    return os.path.isdir(os.path.join(root, "rgb")) and os.path.isdir(os.path.join(root, "depth"))


def find_scenes(
    root: str | os.PathLike, ids: tuple[int, int] | tuple[()] = (), first_id: int = 1
) -> list[Scene]:
    """Scenes sorted by number (or name); with `ids`, those from the first to the last of them.

    Raises:
        ValueError: no rgb/ and depth/, an image without its partner (named), an id that does not exist.
        FileNotFoundError: no such path.
    """
    rgb, depth = _by_stem(root, "rgb"), _by_stem(root, "depth")
    if not rgb or not depth:
        raise ValueError(f"{root}: expected rgb/ and depth/ with images, found {len(rgb)} and {len(depth)}")
    if alone := sorted(rgb.keys() ^ depth.keys()):
        raise ValueError(
            f"{root}: {len(alone)} images without a partner of the same name in rgb/ and depth/, "
            f"first {alone[0]!r}; add or remove them"
        )
    numbers = {stem: int(stem) + first_id for stem in rgb if stem.isdecimal()}
    stems = sorted(rgb, key=lambda stem: (numbers.get(stem, 10**9), stem))
    if ids:
        check_ids(ids, numbers.values(), str(root))
        stems = [stem for stem in stems if ids[0] <= numbers.get(stem, -1) <= ids[1]]
    return [Scene(str(numbers.get(stem, stem)), rgb[stem], depth[stem]) for stem in stems]


def check_ids(ids: tuple[int, int], existing: Iterable[int], where: str) -> None:
    """Raises ValueError if one of the ids from the first to the last does not exist."""
    wanted, existing = set(range(ids[0], ids[1] + 1)), set(existing)
    if missing := sorted(wanted - existing):
        there = f"{min(existing)}-{max(existing)}" if existing else "none"
        raise ValueError(
            f"{where}: {len(missing)} of the {len(wanted)} ids {ids[0]}-{ids[1]} do not exist, first "
            f"{missing[0]} (found: {there})"
        )


def depth_size(file: File) -> tuple[int, int]:
    """(height, width) of a depth image from its header. Raises: ValueError naming the file."""
    image = _depth_image(file)
    return image.height, image.width


def read_depth(file: File, frame: Frame) -> np.ndarray:
    """Depth as uint16 (H,W): d / max d over the frame, 65535 the farthest.

    Raises: ValueError naming the file if it is not grey of 8 or 16 bits, or has holes (zeros).
    """
    image = _depth_image(file)
    try:
        depth = np.asarray(image).astype(np.float32)
    except DECODING_ERRORS as error:
        raise ValueError(f"{file.name}: a damaged depth image ({reason(error)}); copy it again") from error
    holes = float(np.mean(depth <= 0))
    if holes > _MAX_HOLES:
        raise ValueError(f"{file.name}: {holes:.1%} of the depth is zero (holes); fill them first")
    if image.mode == "L":
        depth = np.clip(gaussian_filter(depth, _SMOOTHING), depth - 0.5, depth + 0.5)
    frame.size(*depth.shape, file.name)
    return normalized(frame.apply(depth))


def normalized(depth: np.ndarray) -> np.ndarray:
    """Depth (H,W) in any unit → uint16, 65535 the farthest."""
    return np.rint(depth / depth.max() * 65535).astype(np.uint16)


def _depth_image(file: File) -> Image.Image:
    image, _ = open_image(io.BytesIO(file.bytes()), file.name, MAX_PIXELS)
    if image.mode not in ("L", "I;16", "I;16B", "I"):
        raise ValueError(f"{file.name}: a depth image of mode {image.mode}, expected grey of 8 or 16 bits")
    return image


def _by_stem(root: str | os.PathLike, folder: str) -> dict[str, File]:
    files = find_files(root, folder)
    by_stem = {file.stem: file for file in files}
    if len(by_stem) < len(files):
        twice = next(file for file in files if by_stem[file.stem] is not file)
        raise ValueError(f"{root}: two images named {twice.stem!r} in {folder}/; keep one")
    return by_stem


def parse_ids(text: str) -> tuple[int, int] | tuple[()]:
    """'1-1299' → (1, 1299); '7' → (7, 7); '' → (). Raises: ValueError for another form."""
    if not text:
        return ()
    span = re.fullmatch(r"\s*(\d{1,7})\s*(?:-\s*(\d{1,7})\s*)?", text)
    low, high = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
    if low > high:
        raise ValueError(f"ids must look like 1300-1399, not {text!r}")
    return low, high
