"""Arrays of a data set: where each one comes from, how it is made, and the key under which it is cached."""

import hashlib
import json
import zlib
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np

from difflid_jax.data import rgbd
from difflid_jax.data.files import File
from difflid_jax.data.haze import plausible_depth

FARTHEST = 65535  # the depth of the farthest point of a scene, in every stored depth map


class Item(Protocol):
    """One array of a data set, not yet decoded.

    name: used in errors; independent of where the data set is.
    key: hex digest of the content of its source file and of how it is prepared.
    """

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    def shape(self) -> tuple[int, ...]:
        """The shape, from the file's header if there is one; raises ValueError for a bad file."""
        ...

    def load(self) -> np.ndarray:
        """The array, of `shape()` and `dtype`; raises ValueError naming the file."""
        ...


def digest(*values: Any) -> str:
    """Hex digest of plain values."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class StoredImage:
    """An image of a file, uint8 (H,W,3), cropped (top, left, height, width) or framed."""

    source: File
    crop: tuple[int, int, int, int] | None = None
    frame: rgbd.Frame | None = None
    dtype: str = "uint8"

    @property
    def name(self) -> str:
        return self.source.short_name

    @property
    def key(self) -> str:
        return digest("image", self.source.digest(), self.crop, self.frame and astuple(self.frame))

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
class MeasuredDepth:
    """Measured depth, uint16 (H,W), 65535 at the farthest point of the frame."""

    source: File
    frame: rgbd.Frame
    dtype: str = "uint16"

    @property
    def name(self) -> str:
        return self.source.short_name

    @property
    def key(self) -> str:
        return digest("depth", self.source.digest(), astuple(self.frame))

    def shape(self) -> tuple[int, ...]:
        return self.frame.size(*rgbd.depth_size(self.source), self.source.name)

    def load(self) -> np.ndarray:
        return rgbd.read_depth(self.source, self.frame)


@dataclass(frozen=True)
class PlausibleDepth:
    """Made-up depth of an image (H,W), seeded by its name, 65535 at the scene's farthest point.

    uint16, or float32 if a `sky` (see `haze.plausible_depth`) lies behind the scene.
    """

    image: StoredImage
    sky: float = 0.0

    @property
    def dtype(self) -> str:
        return "float32" if self.sky else "uint16"

    @property
    def name(self) -> str:
        return f"depth of {self.image.name}"

    @property
    def key(self) -> str:
        return digest("plausible depth", self.image.key, self._seed, self.sky)

    @property
    def _seed(self) -> int:
        return zlib.crc32(self.image.name.encode())

    def shape(self) -> tuple[int, ...]:
        return self.image.shape()[:2]

    def load(self) -> np.ndarray:
        return stored_depth(plausible_depth(self.image.load(), self._seed, self.sky), self.sky)


def stored_depth(depth: np.ndarray, sky: float) -> np.ndarray:
    """A depth map of `plausible_depth` in stored units: float32 with a sky, else uint16."""
    return depth * np.float32(FARTHEST) if sky else rgbd.normalized(depth)


@dataclass(frozen=True, eq=False)
class InMemory:
    """An array that is in memory already."""

    name: str
    array: np.ndarray

    @property
    def key(self) -> str:
        content = hashlib.sha256(np.ascontiguousarray(self.array)).hexdigest()
        return digest("array", content, self.dtype, self.shape())

    @property
    def dtype(self) -> str:
        return str(self.array.dtype)

    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def load(self) -> np.ndarray:
        return self.array
