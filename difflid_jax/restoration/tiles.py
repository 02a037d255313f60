"""Images restored in tiles without visible seams.

Neighbouring tiles overlap by more than twice the network's reach and are blended linearly in the middle of
the overlap. Both have the same values there, given features and gates of the whole image: the blending is a
safeguard.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

# About 0.5 megapixel: the size at which a larger image is seen as a whole.
WORKING_PIXELS = 2**19
TILE = 768
RAMP = 16
# Sides of tiles are multiples of this, so that images of similar sizes share a program.
_STEP = 64
LEAST_TILE = 3 * _STEP


def working_size(height: int, width: int, multiple: int, pixels: int = WORKING_PIXELS) -> tuple[int, int]:
    """(rows, columns) of about `pixels` in the shape of height × width, both multiples of `multiple`.

    The shape changes by less than multiple/2 px a side, which the features tolerate; a thin image is also
    shortened, to 1.25 × `pixels`. Nothing is enlarged, except to one `multiple`.
    """
    scale = min(1, math.sqrt(pixels / (height * width)))
    short, long = sorted(max(1, round(side * scale / multiple)) for side in (height, width))
    long = max(1, min(long, int(1.25 * pixels / (short * multiple**2))))
    rows, columns = (short, long) if height <= width else (long, short)
    return rows * multiple, columns * multiple


@dataclasses.dataclass(frozen=True)
class Span:
    """A tile along one axis: it covers start … stop and contributes with `weights` from `first` on."""

    start: int
    stop: int
    first: int
    weights: np.ndarray

    @property
    def last(self) -> int:
        return self.first + len(self.weights)


def spans(length: int, tile: int, align: int, reach: int) -> list[Span]:
    """Tiles of one size, at most `tile`, that cover 0 … length and start at multiples of `align`.

    `length` is a multiple of `align`. A tile contributes pixels more than `reach` away from its cuts.
    The weights of all tiles sum to one everywhere. Raises ValueError for tiles too small to overlap.
    """
    if length <= tile:
        return [Span(0, length, 0, np.ones(length, np.float32))]
    # Rounding the starts may take up to `align` from an overlap.
    overlap = 2 * reach + RAMP + align
    # The ramps on both sides of a tile must not overlap.
    least = max(LEAST_TILE, -(-(overlap + align + RAMP) // _STEP) * _STEP)
    if tile < least:
        raise ValueError(f"tiles: expected {least} px or more, found {tile}")
    count = -(-(length - overlap) // (tile // _STEP * _STEP - overlap))
    side = -(-(length + (count - 1) * overlap) // count)
    side = -(-side // _STEP) * _STEP
    starts = [round(i * (length - side) / (count - 1) / align) * align for i in range(count)]
    middles = [(a + side + b) // 2 for a, b in itertools.pairwise(starts)]
    rising = ((np.arange(RAMP) + 0.5) / RAMP).astype(np.float32)
    found = []
    for i, start in enumerate(starts):
        first = middles[i - 1] - RAMP // 2 if i else 0
        last = middles[i] + RAMP // 2 if i < count - 1 else length
        weights = np.ones(last - first, np.float32)
        if i:
            weights[:RAMP] = rising
        if i < count - 1:
            weights[-RAMP:] = 1 - rising
        found.append(Span(start, start + side, first, weights))
    return found


def grid(height: int, width: int, tile: int, align: int, reach: int) -> tuple[list[Span], list[Span]]:
    """The tiles of an image of height × width along its rows and its columns."""
    return spans(height, tile, align, reach), spans(width, tile, align, reach)


def blend(
    grid: tuple[list[Span], list[Span]],
    restore: Callable[[slice, slice], np.ndarray],
    on_tile: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Finished bands (first row, float32 (rows,width,C)) of the image that a grid covers, top to bottom.

    `restore(rows, columns)` returns the tile there. Only one row of tiles is held at a time. `on_tile` is
    called with (tiles done, tiles in all).
    """
    down, across = grid
    width = across[-1].stop
    carried, done = None, 0
    for row in down:
        band = None
        for column in across:
            restored = restore(slice(row.start, row.stop), slice(column.start, column.stop))
            if band is None:
                band = np.zeros((len(row.weights), width, restored.shape[-1]), np.float32)
            inside = restored[
                row.first - row.start : row.last - row.start,
                column.first - column.start : column.last - column.start,
            ]
            band[:, column.first : column.last] += inside * column.weights[:, None]
            done += 1
            if on_tile:
                on_tile(done, len(down) * len(across))
        band *= row.weights[:, None, None]
        if carried is not None:
            band[:RAMP] += carried
        finished = len(band) if row is down[-1] else len(band) - RAMP
        carried = band[finished:].copy()
        yield row.first, band[:finished]
