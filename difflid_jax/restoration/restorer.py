"""A trained restorer as a function on images: any size, any usual kind, bounded memory.

    restorer = difflid_jax.load_restorer()      # or a run's workdir
    clean = restorer(image)                     # PIL image or array; returns the same kind

An image of up to about 0.5 megapixel is restored in one piece, as in training's evaluation. A larger one is
first reduced to that size (`tiles.WORKING_PIXELS`, area averages), for the feature maps and the channel
gates (Eq. 8): nothing else in the network depends on the whole image. It is then restored in tiles at full
size with these maps and gates, so that tiles agree and the cost grows with the pixels (`plan.py`).
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Shaped

from difflid_jax.compiled import bounded_jit
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.features.h_space import pad_to_multiple
from difflid_jax.features.view import resized
from difflid_jax.images import kinds as image_kinds
from difflid_jax.restoration import tiles
from difflid_jax.restoration.plan import Geometry, Size, Whole, checked_tile, plan
from difflid_jax.weights.schema import check_choice

ENSEMBLES = ("none", "flip")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

OnTile = Callable[[int, int], None]
Pixels = Shaped[np.ndarray, "h w *channels"]


class Programs:
    """The compiled functions of a restorer. They hold no weights: these are their arguments.

    see: (frozen, view (B,H',W',3), key) → maps, the pair of feature maps.
    restore: (params, x (B,H,W,3), maps, window) → (restored, gates); window None: all of the maps.
    restore_tile: (params, x, maps, gates, window) → restored.

    Images are float32 in [-1,1]. Each function keeps the programs of the sizes used last.
    """

    def __init__(self, graph: nnx.GraphDef, spec: Any, features: FrozenFeatures):
        """graph, spec: of the network, a `DiffLI2D` or `ReleasedDiffLI2D`."""
        self.geometry = Geometry(
            spec.stride, spec.reach, features.multiple, features.side, features.pixel_maps, spec.can_tile
        )

        def restore(params, x, maps, window):
            placed = {} if window is None else {"window": window}
            restored, aux = nnx.merge(graph, params)(x, *maps, **placed)
            return restored, aux["gates"]

        def restore_tile(params, x, maps, gates, window):
            return nnx.merge(graph, params)(x, *maps, gates=gates, window=window)[0]

        self.functions = {"see": features.apply, "restore": restore, "restore_tile": restore_tile}
        self.see = bounded_jit(features.apply)
        self.restore = bounded_jit(restore)
        self.restore_tile = bounded_jit(restore_tile)

    def compiled(self) -> int:
        """The number of compiled programs that are held."""
        return sum(program.programs().currsize for program in (self.see, self.restore, self.restore_tile))

    def traced(self, params: Any, frozen: Any, x: Float[Array, "b h w 3"], key: Array) -> Array:
        """See `Restorer.traced`."""
        see, restore = self.functions["see"], self.functions["restore"]
        if not all(isinstance(side, int) for side in x.shape[1:3]):
            return restore(params, x, see(frozen, x, key), None)[0]
        height, width = x.shape[1:3]
        piece = plan(height, width, self.geometry, "off")
        if self.geometry.pixel_maps:
            x = pad_to_multiple(x, self.geometry.common)
        view = jax.image.resize(x, (x.shape[0], *piece.view, 3), "linear")
        x = pad_to_multiple(x, self.geometry.stride)
        return restore(params, x, see(frozen, view, key), piece.window)[0][:, :height, :width]


@dataclasses.dataclass(frozen=True, eq=False)
class Restorer:
    """Restores images with a network and the frozen features that it was trained with.

    params, frozen: parameters of the network and of the frozen model. To restore with others, use
    `dataclasses.replace(restorer, params=…)`: compiled programs are shared.
    noise_seed: draws the features' noise; equal seeds give equal images.
    tile: 'auto', 'off' (always one piece: features at full size, memory grows with the image) or the side of
    tiles in pixels. ensemble: 'flip' averages with the restored mirror image, for twice the time.
    facts: where the weights come from.
    """

    programs: Programs
    params: Any
    frozen: Any
    noise_seed: int = 0
    tile: str | int = "auto"
    ensemble: str = "none"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "tile", checked_tile(self.tile))
        check_choice("ensemble", self.ensemble, ENSEMBLES)

    @classmethod
    def of(cls, network: nnx.Module, features: FrozenFeatures, **fields: Any) -> "Restorer":
        """The restorer of a network and its features; fields: see the class."""
        graph, params = nnx.split(network)
        return cls(Programs(graph, network.spec, features), params, features.frozen, **fields)

    @property
    def parameters(self) -> int:
        """The number of trained parameters, without running statistics."""
        return _count(nnx.filter_state(self.params, nnx.Param))

    @property
    def frozen_parameters(self) -> int:
        return _count(self.frozen)

    def __call__(self, image: Any, *, strength: float = 1.0, on_tile: OnTile | None = None) -> Any:
        """Restore a PIL image or an array, and return the same kind, size and bit depth.

        image: see `images.kinds`. strength: from 0 (the input) to 1 (the restored image). on_tile is called
        with (tiles done, tiles in all) of each image. Raises ValueError or TypeError for other images.
        """
        strength = checked_strength(strength)
        return image_kinds.through(image, lambda pixels: self.restore_pixels(pixels, strength, on_tile))

    def restore_array(self, hazy: Float[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
        """float32 (H,W,3) in [0,1] → the same, restored."""
        return self.restore_pixels(np.asarray(hazy, np.float32))

    def restore_pixels(self, pixels: Pixels, strength: float = 1.0, on_tile: OnTile | None = None) -> Pixels:
        """(H,W) or (H,W,3), uint8, uint16 or float32 in [0,1] → the same, restored.

        Raises: ValueError if the network's output is not finite.
        """
        if strength == 0:
            return pixels.copy()
        out = np.empty_like(pixels)
        for first, restored in self._ensemble(pixels, on_tile):
            rows = slice(first, first + len(restored))
            if pixels.ndim == 2:
                restored = restored @ _LUMA
            if strength != 1:
                before = _unit(pixels[rows])
                restored = before + np.float32(strength) * (restored - before)
            out[rows] = _as_type(restored, pixels.dtype)
        return out

    def traced(self, params: Any, frozen: Any, x: Float[Array, "b h w 3"]) -> Array:
        """x (B,H,W,3) in [-1,1] → restored (B,H,W,3), in one piece; pure, to be traced (export, counting).

        H and W may be symbolic if they are multiples of `Geometry.common`.
        """
        return self.programs.traced(params, frozen, x, jax.random.key(self.noise_seed))

    def maps(self, pixels: Pixels) -> tuple[Float[np.ndarray, "rows columns c"], ...]:
        """The frozen features that guide the restoration of these pixels: (h_content, h_haze)."""
        piece = plan(*pixels.shape[:2], self.programs.geometry, self.tile)
        if not isinstance(piece, Whole):
            pixels, piece = _overview(pixels, piece.overview), piece.survey
        return tuple(np.asarray(h[0], np.float32) for h in self._see(pixels, piece))

    def _ensemble(self, pixels: Pixels, on_tile: OnTile | None) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, restored rows in [0,1]), from top to bottom."""
        if self.ensemble == "none":
            yield from self._finite(pixels, on_tile)
            return
        counts = {}

        def counted(part: str) -> OnTile:
            def report(done: int, total: int) -> None:
                counts[part] = done
                if on_tile:
                    on_tile(sum(counts.values()), 2 * total)

            return report

        bands = self._finite(pixels, counted("image"))
        mirrored = self._finite(np.ascontiguousarray(pixels[:, ::-1]), counted("mirror image"))
        for (first, rows), (_, others) in zip(bands, mirrored, strict=True):
            yield first, (rows + others[:, ::-1]) / 2

    def _finite(self, pixels: Pixels, on_tile: OnTile | None) -> Iterator[tuple[int, np.ndarray]]:
        """As `_ensemble`, of one image. Raises ValueError for rows that are not finite."""
        height, width = pixels.shape[:2]
        for first, band in self._bands(pixels, on_tile):
            rows = (band[: height - first, :width] + 1) / 2
            if not np.isfinite(rows).all():
                raise ValueError("the restored image is not finite; use other weights, or train these again")
            yield first, np.clip(rows, 0, 1)

    def _bands(self, pixels: Pixels, on_tile: OnTile | None) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, restored rows in [-1,1] of the padded image), from top to bottom."""
        steps = plan(*pixels.shape[:2], self.programs.geometry, self.tile)
        if isinstance(steps, Whole):
            restored, _, _ = self._whole(pixels, steps)
            yield 0, np.asarray(restored)[0]
            if on_tile:
                on_tile(1, 1)
            return
        _, maps, gates = self._whole(_overview(pixels, steps.overview), steps.survey)
        padded = _padded(pixels, steps.padded)

        def restore(rows: slice, columns: slice) -> np.ndarray:
            window = tuple(map(np.float32, steps.window(rows, columns)))
            x = _signed(padded[rows, columns])[None]
            return np.asarray(self.programs.restore_tile(self.params, x, maps, gates, window))[0]

        geometry = self.programs.geometry
        grid = tiles.grid(*steps.padded, steps.tile, geometry.stride, geometry.reach)
        yield from tiles.blend(grid, restore, on_tile)

    def _whole(self, pixels: Pixels, piece: Whole) -> tuple[jax.Array, Any, Any]:
        """(restored (1,H,W,3), maps, gates), with the size and the maps that the plan names."""
        maps = self._see(pixels, piece)
        x = _signed(_padded(pixels, piece.padded))[None]
        window = piece.window and tuple(map(np.float32, piece.window))
        restored, gates = self.programs.restore(self.params, x, maps, window)
        return restored, maps, gates

    def _see(self, pixels: Pixels, piece: Whole) -> tuple[jax.Array, jax.Array]:
        view = resized(_signed(_padded(pixels, piece.extent)), piece.view)[None]
        return self.programs.see(self.frozen, view, jax.random.key(self.noise_seed))


def checked_strength(strength: float) -> float:
    """Raises ValueError unless it is a number from 0 to 1."""
    if not isinstance(strength, numbers.Real) or not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 (the input) to 1 (the restored image), found {strength!r}")
    return float(strength)


def _count(state: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def _padded(pixels: Pixels, size: Size) -> Shaped[np.ndarray, "rows columns *channels"]:
    """Pixels padded by reflection at the bottom and the right, repeated as often as needed."""
    missing = (size[0] - pixels.shape[0], size[1] - pixels.shape[1])
    if not any(missing):
        return pixels
    return np.pad(pixels, [(0, n) for n in missing] + [(0, 0)] * (pixels.ndim - 2), mode="reflect")


def _overview(pixels: Pixels, size: Size) -> Shaped[np.ndarray, "rows columns *channels"]:
    """The pixels themselves if they have this size, else area averages, float32 in [0,1]."""
    if pixels.shape[:2] == size:
        return pixels
    return resized(pixels, size, average=True) / np.float32(_top(pixels.dtype))


def _coloured(x: Pixels) -> Shaped[np.ndarray, "h w 3"]:
    return x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=-1)


def _top(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def _unit(pixels: Pixels) -> Float32[np.ndarray, "h w *channels"]:
    """Pixels as float32 in [0,1]."""
    return np.clip(pixels.astype(np.float32) / _top(pixels.dtype), 0, 1)


def _signed(pixels: Pixels) -> Float32[np.ndarray, "h w 3"]:
    """Pixels as float32 RGB in [-1,1]."""
    return _coloured(_unit(pixels)) * 2 - 1


def _as_type(x: Pixels, dtype: np.dtype) -> Pixels:
    """x in [0,1] as a dtype, integers over their whole range."""
    return np.rint(x * _top(dtype)).astype(dtype) if dtype.kind == "u" else x.astype(dtype)
