"""How an image of a given size is restored: in one piece or in tiles, and at which sizes. Pure arithmetic.

The network needs sides that are multiples of its stride (8 px for four levels), the frozen model sides that
are multiples of its own (32 px for ImageNet-256). The image is padded for the network only, by at most
stride − 1 pixels a side. The frozen model sees a *view*: the real pixels, resized to the nearest size that
fits. Padding thus enters neither the features nor the channel gates (see `HazeAwareEnhancement`). Sizes are
never rounded up to share compiled programs: each size has its own program, and its scores do not depend on
what else is restored.
"""

import dataclasses
import math

from difflid_jax.features.view import view_size
from difflid_jax.restoration import tiles

Size = tuple[int, int]
Window = tuple[float, float, float, float]

# Networks that attend to their own input cannot be tiled: images above this size are refused.
MOST_PIXELS_WHOLE = 4 * tiles.WORKING_PIXELS


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What network and features require of sizes, in pixels.

    stride: sides of the network's input are multiples of it. reach: beyond this distance, only the maps and
        gates influence a pixel. multiple: sides of the view are multiples of it.
    side: the view is side×side for every image (0: it follows the image).
    pixel_maps: the maps have a value for every pixel, so that view and input must be the same array: the
        image padded to `multiple`, padding and all (the authors' release).
    can_tile: the network takes gates and features of a whole image for a part of it.
    """

    stride: int
    reach: int
    multiple: int
    side: int = 0
    pixel_maps: bool = False
    can_tile: bool = True

    @property
    def common(self) -> int:
        """Images whose sides are multiples of this are neither padded nor (but for `side`) resized."""
        return math.lcm(self.stride, 1 if self.side else self.multiple)


@dataclasses.dataclass(frozen=True)
class Whole:
    """One piece. `extent`: what the maps cover; `padded`: the network's input; `view`: the features' input.

    `extent` is the image's size or, for pixel maps, the padded size.
    """

    extent: Size
    padded: Size
    view: Size

    @property
    def window(self) -> Window | None:
        """The part of the maps that the padded input covers; None for all of them."""
        if self.padded == self.extent:
            return None
        return 0.0, 0.0, self.padded[0] / self.extent[0], self.padded[1] / self.extent[1]


@dataclasses.dataclass(frozen=True)
class Tiled:
    """Tiles of at most `tile` pixels a side, with the features and gates of an `overview`.

    overview: the size that the image is shrunk to for these, or its own size if it is not large; `survey` is
    the plan for that size, in one piece. extent, padded: as in `Whole`, of the image at full size.
    """

    extent: Size
    padded: Size
    tile: int
    overview: Size
    survey: Whole

    def window(self, rows: slice, columns: slice) -> Window:
        """The part of the maps that a tile covers."""
        height, width = self.extent
        return rows.start / height, columns.start / width, rows.stop / height, columns.stop / width


def plan(height: int, width: int, geometry: Geometry, tile: str | int = "auto") -> Whole | Tiled:
    """The plan for an image of height × width pixels.

    tile: 'auto' (tiles above about 0.5 megapixel), 'off' (always one piece), or the side of tiles in pixels.
    Raises ValueError for an image that is too large for a network that cannot be tiled.
    """
    tile = checked_tile(tile)
    whole = _whole(height, width, geometry)
    if not geometry.can_tile:
        if tile != "off" and height * width > MOST_PIXELS_WHOLE:
            raise ValueError(
                f"{width}×{height}: a network with self-attention restores whole images only, here up to "
                f"{MOST_PIXELS_WHOLE / 1e6:.1f} megapixels; shrink it, or set tile='off' to try it anyway"
            )
        return whole
    # A thin image is small, and what it is padded to is not.
    large = height * width > tiles.WORKING_PIXELS or math.prod(whole.padded) > 2 * tiles.WORKING_PIXELS
    if tile == "off" or (tile == "auto" and not large):
        return whole
    side = tiles.TILE if tile == "auto" else tile
    if max(height, width) <= side:
        return whole
    if not large:
        return Tiled(whole.extent, whole.padded, side, (height, width), whole)
    overview = tiles.working_size(height, width, geometry.common)
    padded = _up(height, geometry.stride), _up(width, geometry.stride)
    return Tiled((height, width), padded, side, overview, _whole(*overview, geometry))


def checked_tile(tile: str | int) -> str | int:
    """`tile` as 'auto', 'off' or pixels. Raises ValueError for anything else."""
    if tile in ("auto", "off"):
        return tile
    if isinstance(tile, str) and tile.isdecimal():
        tile = int(tile)
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < tiles.LEAST_TILE:
        raise ValueError(f"tile: expected auto, off or {tiles.LEAST_TILE} pixels or more, found {tile!r}")
    return tile


def _whole(height: int, width: int, geometry: Geometry) -> Whole:
    if geometry.pixel_maps:
        padded = tuple(_up(side, geometry.common) for side in (height, width))
        return Whole(padded, padded, padded)
    padded = _up(height, geometry.stride), _up(width, geometry.stride)
    return Whole((height, width), padded, view_size(height, width, geometry.multiple, geometry.side))


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
