"""A trained restorer as a function on pictures: any size, any usual kind, bounded memory.

    restorer = difflid_jax.load_restorer()      # or a folder of one's own training run
    clean = restorer(image)                     # PIL image or array, back comes the same kind

A picture up to about 0.5 megapixel is restored in one piece, as in training's evaluation. A larger one is
looked at as a whole at that working size (`tiles.WORKING_PIXELS`, area averages): this gives the feature
maps and the channel gates (Eq. 8), the only things in the network that depend on the whole picture. Its full
size is then restored in tiles with these, so that tiles agree, and the cost grows with the pixels.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from difflid_jax.features.build import FrozenFeatures, build_features
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.images import kinds as image_kinds
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.release import ReleasedDiffLI2D, ReleaseSpec
from difflid_jax.restoration import tiles
from difflid_jax.weights import store

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_RELEASE_STRIDE = 8
# Networks that attend to their own input cannot be tiled: beyond this they are refused.
_MOST_PIXELS_WHOLE = 4 * tiles.WORKING_PIXELS

OnTile = Callable[[int, int], None]


class Restorer:
    """Restores pictures with a network and the frozen features that it was trained with.

    tile: 'auto', 'off' (always in one piece: features at full size, memory grows with the picture) or the
    side of tiles in pixels. Programs are compiled at first use, one for each size bucket, and the same input
    gives the same output. `facts` say where the weights come from.
    """

    def __init__(
        self,
        network: nnx.Module,
        features: FrozenFeatures,
        *,
        noise_seed: int = 0,
        tile: str | int = "auto",
        facts: dict[str, Any] | None = None,
    ):
        self.spec = network.spec
        self.facts = dict(facts or {})
        self.parameters = _count(nnx.state(network, nnx.Param))
        self.frozen_parameters = _count(features.frozen)
        self.tile = checked_tile(tile)
        self._align = getattr(self.spec, "stride", _RELEASE_STRIDE)
        self.multiple = math.lcm(features.multiple, self._align)
        self._can_tile = "self_attention" not in (
            getattr(self.spec, "content", ""),
            getattr(self.spec, "haze", ""),
        )
        graph, self.weights = nnx.split(network)
        self.frozen = features.frozen

        def look(weights, frozen, x):
            maps = features.apply(frozen, x, jax.random.key(noise_seed))
            restored, aux = nnx.merge(graph, weights)(x, *maps)
            return restored, maps, aux["gates"]

        self.look = look
        self._restore_whole = jax.jit(lambda *arguments: look(*arguments)[0])
        self._survey = jax.jit(lambda *arguments: look(*arguments)[1:])
        self.restore_tile = jax.jit(
            lambda weights, x, maps, gates, window: nnx.merge(graph, weights)(
                x, *maps, gates=gates, window=window
            )[0]
        )

    def __call__(self, image: Any, *, strength: float = 1.0, on_tile: OnTile | None = None) -> Any:
        """Restore a PIL image or an array, and return the same kind, size and bit depth.

        image: see `image_kinds`. strength: from 0 (the input) to 1 (the restored picture). on_tile is told
        (tiles done, tiles in all) of each picture. Raises ValueError or TypeError for what is no picture.
        """
        strength = checked_strength(strength)
        return image_kinds.through(image, lambda pixels: self.restore_pixels(pixels, strength, on_tile))

    def compiled(self) -> int:
        """How many programs were compiled so far."""
        programs = (self._restore_whole, self._survey, self.restore_tile)
        return sum(program._cache_size() for program in programs)

    def restore_array(self, hazy: np.ndarray) -> np.ndarray:
        """float32 (H,W,3) in [0,1] → the same, restored."""
        return self.restore_pixels(np.asarray(hazy, np.float32))

    def restore_pixels(
        self, pixels: np.ndarray, strength: float = 1.0, on_tile: OnTile | None = None
    ) -> np.ndarray:
        """(H,W) or (H,W,3), uint8, uint16 or float32 in [0,1] → the same, restored.

        Raises: ValueError if the network's output is not finite.
        """
        if strength == 0:
            return pixels.copy()
        height, width = pixels.shape[:2]
        out = np.empty_like(pixels)
        for first, band in self._bands(pixels, on_tile):
            rows = slice(first, min(first + len(band), height))
            restored = (band[: rows.stop - first, :width] + 1) / 2
            if not np.isfinite(restored).all():
                raise ValueError("the restored image is not finite; use other weights, or train these again")
            restored = np.clip(restored, 0, 1)
            if pixels.ndim == 2:
                restored = restored @ _LUMA
            if strength != 1:
                before = _unit(pixels[rows])
                restored = before + np.float32(strength) * (restored - before)
            out[rows] = _as_type(restored, pixels.dtype)
        return out

    def _bands(self, pixels: np.ndarray, on_tile: OnTile | None):
        """(first row, restored rows in [-1,1]), from top to bottom."""
        height, width = pixels.shape[:2]
        size = (tiles.bucket(height, self.multiple), tiles.bucket(width, self.multiple))
        # A thin picture is small, and what it is padded to is not.
        large = height * width > tiles.WORKING_PIXELS or math.prod(size) > 2 * tiles.WORKING_PIXELS
        tile = checked_tile(self.tile)
        if not self._can_tile and tile != "off" and height * width > _MOST_PIXELS_WHOLE:
            raise ValueError(
                f"{width}×{height}: a network with self-attention restores whole pictures only, here up to "
                f"{_MOST_PIXELS_WHOLE / 1e6:.1f} megapixels; shrink it, or set tile='off' to take the memory"
            )
        side = tiles.TILE if tile == "auto" else tile
        whole = side == "off" or not self._can_tile or max(height, width) <= side
        if tile == "auto" and not large:
            whole = True
        if whole:
            x = _signed(_padded(pixels, *size))[None]
            yield 0, np.asarray(self._restore_whole(self.weights, self.frozen, x))[0]
            if on_tile:
                on_tile(1, 1)
            return
        if large:
            pixels = _padded(pixels, *(-(-side // self._align) * self._align for side in (height, width)))
            size = tiles.working_size(*pixels.shape[:2], self.multiple)
            view = _shrunk(pixels, *size)
        else:
            pixels = _padded(pixels, *size)
            view = _unit(pixels)
        maps, gates = self._survey(self.weights, self.frozen, (_coloured(view) * 2 - 1)[None])
        rows, columns = pixels.shape[:2]

        def restore(down: slice, across: slice) -> np.ndarray:
            window = (down.start / rows, across.start / columns, down.stop / rows, across.stop / columns)
            x = _signed(pixels[down, across])[None]
            window = tuple(np.float32(edge) for edge in window)
            return np.asarray(self.restore_tile(self.weights, x, maps, gates, window))[0]

        yield from tiles.blend(rows, columns, side, self._align, restore, on_tile)


def load_restorer(
    name_or_folder: str | os.PathLike = "haze",
    *,
    prior: str | os.PathLike | None = None,
    dtype: str = "auto",
    tile: str | int = "auto",
) -> Restorer:
    """The restorer of a shipped name, of a weights folder, or of a training run's workdir.

    prior: where the frozen model lies, if not where the restorer's metadata say. dtype: of the frozen model's
    arithmetic: 'float32', 'bfloat16', or 'auto' (bfloat16 on GPU and TPU). tile: see `Restorer`.

    Raises FileNotFoundError where weights are not there, ValueError where they are of another kind, version
    or architecture, or the prior is not the one that the restorer was trained with.
    """
    folder = Path(name_or_folder).expanduser()
    if (folder / "weights" / store.FILE).is_file() and not (folder / store.FILE).exists():
        name_or_folder = folder / "weights"
    weights = store.read(name_or_folder, "restorer")
    where = str(weights.path)
    if weights.architecture.get("network") == "release":
        spec, kind = weights.spec(ReleaseSpec), ReleasedDiffLI2D
    else:
        spec, kind = weights.spec(NetworkSpec), DiffLI2D
    features = _features(weights, prior, dtype)
    if spec.feature_channels != features.channels:
        raise ValueError(
            f"{where}: expected features of {spec.feature_channels} channels, found {features.channels} "
            "in its prior; name the prior that it was trained with"
        )
    network = nnx.eval_shape(lambda: kind(spec, rngs=nnx.Rngs(0)))
    store.fill(network, weights.tensors, where=where)
    facts = {"weights": os.fspath(name_or_folder), "sha256": weights.sha256, **weights.metadata}
    seed = weights.metadata.get("noise_seed", 0)
    return Restorer(network, features, noise_seed=seed, tile=tile, facts=facts)


def _features(weights: store.Weights, prior: str | os.PathLike | None, dtype: str) -> FrozenFeatures:
    said = weights.metadata
    if "features" not in said or ("prior" not in said and prior is None):
        raise ValueError(
            f"{weights.path}: its metadata do not name its features and its prior; train it again"
        )
    fields = dict(said["features"])
    kind = fields.pop("kind", "h_space")
    config = said.get("config", {})
    random_seed = config.get("seed", 0) if config.get("features", {}).get("random") else None
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        spec = HSpaceSpec.from_dict(fields) if fields else None
        features = build_features(
            kind,
            said["prior"] if prior is None else prior,
            spec,
            dtype=jnp.dtype(dtype),
            random_seed=random_seed,
        )
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the prior of {weights.path}: {error}; if it lies elsewhere, say where (prior=, --prior)"
        ) from error
    expected = said.get("prior_sha256")
    if expected and features.sha256 != expected:
        raise ValueError(
            f"{weights.path}: expected the prior with SHA-256 {expected}, found {features.sha256} in "
            f"{prior or said['prior']}; name the prior that it was trained with (prior=, --prior)"
        )
    return features


def checked_tile(tile: str | int) -> str | int:
    if tile in ("auto", "off"):
        return tile
    if isinstance(tile, str) and tile.isdecimal():
        tile = int(tile)
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < tiles.LEAST_TILE:
        raise ValueError(f"tile: expected auto, off or {tiles.LEAST_TILE} pixels or more, found {tile!r}")
    return tile


def checked_strength(strength: float) -> float:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: expected 0 (the input) to 1 (the restored picture), found {strength}")
    return float(strength)


def _count(state: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def _padded(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Reflected at the bottom and the right, as often as needed."""
    missing = (rows - pixels.shape[0], columns - pixels.shape[1])
    if not any(missing):
        return pixels
    return np.pad(pixels, [(0, n) for n in missing] + [(0, 0)] * (pixels.ndim - 2), mode="reflect")


def _shrunk(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Area averages, float32 in [0,1]."""

    def shrink(channel: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(channel).resize((columns, rows), Image.Resampling.BOX))

    channels = [pixels] if pixels.ndim == 2 else [pixels[..., c] for c in range(3)]
    small = np.stack([shrink(channel.astype(np.float32)) for channel in channels], -1)
    small /= _top(pixels.dtype)
    return small[..., 0] if pixels.ndim == 2 else small


def _coloured(x: np.ndarray) -> np.ndarray:
    return x if x.ndim == 3 else np.repeat(x[..., None], 3, axis=-1)


def _top(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def _unit(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0,1]."""
    return np.clip(pixels.astype(np.float32) / _top(pixels.dtype), 0, 1)


def _signed(pixels: np.ndarray) -> np.ndarray:
    """float32 (H,W,3) in [-1,1]."""
    return _coloured(_unit(pixels)) * 2 - 1


def _as_type(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.rint(x * _top(dtype)).astype(dtype) if dtype.kind == "u" else x.astype(dtype)
