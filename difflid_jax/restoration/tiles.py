"""Sizes that share a compiled program, and pictures worked on in tiles that do not show.

Neighbouring tiles overlap by more than twice the distance over which the network sees (`margin`), and go over
into each other, linearly, in the middle of the overlap. There both have computed the same values, provided
that all that is global, features and gates, is given to them: the transition is a safeguard.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

# About 0.5 megapixel: the size at which a larger picture is looked at as a whole.
WORKING_PIXELS = 2**19
TILE = 768
RAMP = 16
# Tiles have sides in these steps, so that pictures of about one size share a program.
_STEP = 64
LEAST_TILE = 3 * _STEP


def margin(align: int) -> int:
    """Farther than this away from a pixel, nothing reaches it through the convolutions.

    align: pixels of the picture to one of the deepest level, 8 for four levels, which see 30 px far; each
    level more doubles that.
    """
    return 4 * max(align, 8)


def bucket(length: int, multiple: int) -> int:
    """The least length that is compiled for and holds `length`.

    Multiples of `multiple` up to 16 of them, then steps that are twice as wide for twice the length: up to
    1/8 is added to a long side, less than `multiple` to a short one.
    """
    step = multiple
    while length > 16 * step:
        step *= 2
    return -(-length // step) * step


def working_size(height: int, width: int, multiple: int, pixels: int = WORKING_PIXELS) -> tuple[int, int]:
    """About `pixels` in the shape of height × width, both multiples of `multiple`, so that nothing is padded.

    The shape changes by less than multiple/2 px a side, which the features do not mind; a thin picture is
    also shortened, to 1.25 × `pixels`. Nothing is enlarged, but to one `multiple`.
    """
    scale = min(1, math.sqrt(pixels / (height * width)))
    short, long = sorted(max(1, round(side * scale / multiple)) for side in (height, width))
    long = max(1, min(long, int(1.25 * pixels / (short * multiple**2))))
    rows, columns = (short, long) if height <= width else (long, short)
    return rows * multiple, columns * multiple


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a tile lies along one axis (start, stop), and what it gives: `weights` from `first` on."""

    start: int
    stop: int
    first: int
    weights: np.ndarray

    @property
    def last(self) -> int:
        return self.first + len(self.weights)


def spans(length: int, tile: int, align: int) -> list[Span]:
    """Tiles of one size, at most `tile`, that cover 0 … length; starts are multiples of `align`.

    `length` is a multiple of `align`. The weights of all tiles sum to one everywhere.
    Raises ValueError for tiles too small to overlap.
    """
    if length <= tile:
        return [Span(0, length, 0, np.ones(length, np.float32))]
    # Rounding the starts may take up to `align` from an overlap.
    overlap = 2 * margin(align) + RAMP + align
    # The ramps on both sides of a tile stay apart.
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


def blend(
    height: int,
    width: int,
    tile: int,
    align: int,
    restore: Callable[[slice, slice], np.ndarray],
    on_tile: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Finished bands (first row, float32 (rows,width,C)) of a picture of height × width, from top to bottom.

    `restore(rows, columns)` gives the tile there. Only one row of tiles is held at a time. `on_tile` is told
    (tiles done, tiles in all).
    """
    down, across = spans(height, tile, align), spans(width, tile, align)
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
