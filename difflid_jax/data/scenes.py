"""Numbered scenes with depth, from which RESIDE's indoor sets are rebuilt: files, photographs, NYU's .mat."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from difflid_jax.data.files import File, find_files
from difflid_jax.data.haze import plausible_depth
from difflid_jax.data.items import digest
from difflid_jax.data.rgbd import FRAMES, read_depth


class FileScenes:
    """Images and depths with equal numbers as names, in folders or tars; ids count from `first_id`."""

    default_frame = "nyu_mirrored"

    def __init__(self, rgb: str | os.PathLike, depth: str | os.PathLike, first_id: int = 1):
        self._rgb = _numbered(rgb, "rgb", first_id)
        self._depth = _numbered(depth, "depth", first_id)
        if self._rgb == self._depth:
            raise ValueError(f"{rgb}: no depth/ here; give --depth=FILES, or --depth=plausible to make it up")
        self.ids = sorted(self._rgb.keys() & self._depth.keys())
        alone = sorted(self._rgb.keys() ^ self._depth.keys())
        if alone:
            file = self._rgb.get(alone[0]) or self._depth[alone[0]]
            raise ValueError(
                f"{len(alone)} images or depths without a partner of the same number, first {file.name}"
            )

    def fingerprint(self, ids: Sequence[int]) -> str:
        """Hex digest of the content of these scenes' files."""
        return digest(*((i, self._rgb[i].digest(), self._depth[i].digest()) for i in ids))

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """(clean uint8 (H,W,3), depth float32 (H,W), farthest = 1), whole as stored. Raises: ValueError."""
        depth = read_depth(self._depth[scene], FRAMES["whole"])
        return self._rgb[scene].image(), depth.astype(np.float32) / 65535


class PhotographScenes:
    """Photographs with numbers as names, in a folder or a tar, and a plausible depth for each."""

    default_frame = "whole"

    def __init__(self, rgb: str | os.PathLike, first_id: int = 1):
        self._rgb = _numbered(rgb, "rgb", first_id)
        self.ids = sorted(self._rgb)

    def fingerprint(self, ids: Sequence[int]) -> str:
        """As `FileScenes.fingerprint`."""
        return digest(*((i, self._rgb[i].digest()) for i in ids))

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """As `FileScenes.load`."""
        clean = self._rgb[scene].image()
        return clean, plausible_depth(clean, scene)


class MatScenes:
    """NYU's nyu_depth_v2_labeled.mat: images (N,3,W,H) uint8 and depths (N,W,H), as HDF5 stores them."""

    default_frame = "nyu"

    def __init__(self, path: str | os.PathLike, first_id: int = 1):
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise ValueError(f"{path}: a .mat is read by h5py: pip install 'difflid_jax[nyu]'") from error
        Path(path).stat()
        try:
            self._file = h5py.File(path, "r")
            images, depths = self._file["images"], self._file["depths"]
        except (OSError, KeyError) as error:
            raise ValueError(
                f"{path}: expected HDF5 (MATLAB 7.3) with “images” and “depths”, as nyu_depth_v2_labeled.mat "
                f"is ({error})"
            ) from error
        if images.ndim != 4 or images.shape[1] != 3 or depths.shape != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"{path}: expected images (N,3,W,H) and depths (N,W,H), found {images.shape}, {depths.shape}"
            )
        self._images, self._depths, self._first_id = images, depths, first_id
        self.ids = list(range(first_id, first_id + len(images)))

    def fingerprint(self, ids: Sequence[int]) -> str:
        """As `FileScenes.fingerprint`, of the whole file."""
        return File(Path(self._file.filename)).digest()

    def load(self, scene: int) -> tuple[np.ndarray, np.ndarray]:
        """As `FileScenes.load`, but with the depth in metres."""
        index = scene - self._first_id
        clean = np.ascontiguousarray(self._images[index].transpose(2, 1, 0))
        return clean, np.asarray(self._depths[index], np.float32).T


Scenes = FileScenes | PhotographScenes | MatScenes


def open_scenes(rgb: str | os.PathLike, depth: str | os.PathLike | None = None, first_id: int = 1) -> Scenes:
    """Scenes from a .mat, or from folders or tars of images and of depths.

    depth: None for the same place as `rgb`, "plausible" for photographs that have none.

    Raises: ValueError or OSError naming what is missing.
    """
    if Path(rgb).suffix.lower() == ".mat":
        if depth:
            raise ValueError(f"{rgb}: contains its own depths; omit --depth={depth}")
        return MatScenes(rgb, first_id)
    if depth == "plausible":
        return PhotographScenes(rgb, first_id)
    return FileScenes(rgb, depth or rgb, first_id)


def _numbered(root: str | os.PathLike, folder: str, first_id: int) -> Mapping[int, File]:
    files = find_files(root, folder) or find_files(root)
    if not files:
        raise ValueError(f"{root}: no images here, nor in {folder}/ below (expected PNG or JPEG)")
    numbered: dict[int, File] = {}
    for file in files:
        if not file.stem.isdecimal():
            raise ValueError(
                f"{file.name}: RESIDE numbers its scenes; expected a number as its name, as in 0.jpg"
            )
        if (number := int(file.stem) + first_id) in numbered:
            raise ValueError(f"{file.name} and {numbered[number].name} have the same number; keep one")
        numbered[number] = file
    return numbered
