"""Crops from images: window, scale, flip, and haze made on the fly, all drawn from one generator."""

import copy
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from difflid_jax.data.haze import scatter, to_linear, to_srgb
from difflid_jax.data.sources import DataSet

WHOLE = (0.0, 0.0, 1.0, 1.0)
_KEPT_VIEWS = 8192  # 28 KiB each, at 64 px with depth
_LINEAR = to_linear(np.arange(256, dtype=np.float32) / 255)  # of every value of a byte


def check_seed(seed: int, name: str = "seed") -> None:
    """Raise ValueError for a seed that the generators do not take."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name}: expected 0 to 2³²−1, found {seed}")


@dataclass(frozen=True)
class HazeSpec:
    """Haze made on the fly, I = J·t + A(1−t), t = exp(−β·d/max d); the defaults are RESIDE ITS.

    airlight, beta: ranges of A and β, uniform, drawn per crop (per image in evaluation).
    seed: of the haze in evaluation.
    The rest is off by default and applies to training only:
    clean: share of the crops with β = 0, so that a network learns to leave clean images unchanged.
    flat: share of the crops of a single colour, also with β = 0, so that a plain surface stays as it is.
    white: share of the crops with A = 1, as in all of SOTS-indoor, and with neither tint nor light.
    linear: share of the crops, white ones aside, whose haze is added to linear light, as in the air, instead
        of to sRGB values, as in RESIDE: it then lifts shadows far more than bright surfaces.
    tint: each channel of A is scaled by a factor within 1 ± tint (and clipped to 1).
    gamma: range of an exponent on the clean image before haze, log-uniform.
    light: range of a factor on scene and airlight, log-uniform, for dim rooms: one factor in half of the
        crops, in the others one at each corner, interpolated bilinearly.
    dim: share of the crops, white ones aside, to which `light` applies.
    noise: the largest standard deviation of Gaussian noise on the hazy image, in [0,1] units.
    jpeg: range of JPEG qualities for half of the hazy crops; () is none.
    """

    OF_TRAINING = ("clean", "flat", "white", "linear", "tint", "gamma", "light", "dim", "noise", "jpeg")

    airlight: tuple[float, float] = (0.7, 1.0)
    beta: tuple[float, float] = (0.6, 1.8)
    seed: int = 0
    clean: float = 0.0
    flat: float = 0.0
    white: float = 0.0
    linear: float = 0.0
    tint: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    light: tuple[float, float] = (1.0, 1.0)
    dim: float = 1.0
    noise: float = 0.0
    jpeg: tuple[int, ...] = ()

    def __post_init__(self):
        for name, low in (("airlight", 0.0), ("beta", 0.0), ("gamma", 1e-3), ("light", 1e-3)):
            span = getattr(self, name)
            if len(span) != 2 or not low <= span[0] <= span[1]:
                raise ValueError(
                    f"data.haze.{name}: expected two numbers {low:g} ≤ low ≤ high, found {span!r}"
                )
        check_seed(self.seed, "data.haze.seed")
        for name in ("airlight", "light"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"data.haze.{name}: expected at most 1, found {getattr(self, name)!r}")
        for name in ("clean", "flat", "white", "linear", "dim"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.haze.{name}: expected 0 to 1, found {getattr(self, name)!r}")
        for name in ("tint", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"data.haze.{name}: expected 0 ≤ {name} < 1, found {getattr(self, name)!r}")
        if self.jpeg and (len(self.jpeg) != 2 or not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100):
            raise ValueError(
                f"data.haze.jpeg: expected () or two qualities 1 ≤ low ≤ high ≤ 100, found {self.jpeg!r}"
            )


RESIDE = HazeSpec()


@dataclass(frozen=True)
class CropSpec:
    """Random square crops.

    size: of the crop. flip: mirror half of the crops.
    scale: range of a factor, log-uniform, by which the image is first resized (never so small that the crop
        no longer fits); (1, 1) is off.
    view: side at which the whole hazy image accompanies every crop, for features of whole images; 0 is off.
    region: range of a factor, log-uniform, of the sides of a random region that stands for the whole image,
        so that some images show little but a wall or a sky; with `view` only; (1, 1) is off.
    """

    size: int = 128
    flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)
    view: int = 0
    region: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"data.crop: expected at least 1 pixel, found {self.size!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"data.scale: expected two numbers 0 < low ≤ high, found {self.scale!r}")
        if len(self.region) != 2 or not 0 < self.region[0] <= self.region[1] <= 1:
            raise ValueError(f"data.region: expected two numbers 0 < low ≤ high ≤ 1, found {self.region!r}")


@dataclass
class Augment:
    """Element → crops, {'hazy', 'clean'} or {'image'}, uint8 (size,size,3).

    With `crop.view` also 'view', the whole hazy image, uint8 (view,view,3), and 'window', the part of it that
    the crop shows: (top, left, bottom, right) in [0,1], float32 (4,). With `data.features`, what these give
    for the whole image in place of 'view'.
    """

    data: DataSet
    crop: CropSpec
    haze: HazeSpec
    _views: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        positions = self.data.elements[element].tolist()
        region = self._region(self.data.store.shape(positions[0]), rng)
        (top, left, *size), flip = self._window(region[2:], rng)
        window = (region[0] + top, region[1] + left, *size)
        arrays = [self._read(position, window, flip) for position in positions]
        if self.data.kind == "images":
            return {"image": arrays[0]}
        if not self.crop.view:
            return self._pair(arrays, rng)
        part = _part((top, left, *size), region[2:], flip)
        if self.data.features:
            maps = self.data.features.draw(element, flip, rng)
            return {**self._pair(arrays, rng), **maps, "window": np.asarray(part, np.float32)}
        # The same draws, so that the crop and the whole image have the same haze.
        view = self._pair([self._view(position, region, flip) for position in positions], copy.deepcopy(rng))
        pair = self._pair(arrays, rng, part)
        return {**pair, "view": view["hazy"], "window": np.asarray(part, np.float32)}

    def _pair(
        self, arrays: Sequence[np.ndarray], rng: np.random.Generator, window: Sequence[float] = WHOLE
    ) -> dict[str, np.ndarray]:
        if self.data.kind == "pairs":
            return {"hazy": arrays[0], "clean": arrays[1]}
        return make_hazy(arrays[0], arrays[1], self.haze, rng, window=window)

    def _region(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
        """(top, left, height, width) of the part that stands for the whole image; the crop fits in it."""
        if self.crop.region == (1.0, 1.0):
            return 0, 0, *shape[:2]
        factor = math.exp(rng.uniform(*map(math.log, self.crop.region)))
        height, width = (min(side, max(self.crop.size, round(side * factor))) for side in shape[:2])
        return (
            int(rng.integers(shape[0] - height + 1)),
            int(rng.integers(shape[1] - width + 1)),
            height,
            width,
        )

    def _window(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[tuple[int, ...], bool]:
        side, (low, high) = self.crop.size, self.crop.scale
        if high != 1 or low != 1:
            side = round(side / math.exp(rng.uniform(math.log(low), math.log(high))))
            side = max(1, min(side, shape[0], shape[1]))
        top = int(rng.integers(shape[0] - side + 1))
        left = int(rng.integers(shape[1] - side + 1))
        return (top, left, side, side), bool(rng.integers(2)) and self.crop.flip

    def _read(self, position: int, window: tuple[int, ...], flip: bool) -> np.ndarray:
        array = self.data.store.window(position, *window)
        if window[2] != self.crop.size:
            array = _resize(array, self.crop.size)
        return mirrored(array) if flip else array

    def _view(self, position: int, region: tuple[int, ...], flip: bool) -> np.ndarray:
        whole = region == (0, 0, *self.data.store.shape(position)[:2])
        small = self._views.get(position) if whole else None
        if small is None:
            small = reduced(self.data.store.window(position, *region), self.crop.view)
            if whole and len(self._views) < _KEPT_VIEWS:
                self._views[position] = small
        return mirrored(small) if flip else small


def reduced(array: np.ndarray, side: int) -> np.ndarray:
    """An image or a depth map averaged to side×side; depth becomes float32."""
    image = Image.fromarray(array if array.ndim == 3 else array.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def _part(window: Sequence[int], shape: Sequence[int], flip: bool) -> tuple[float, float, float, float]:
    """A window (top, left, height, width) in pixels as (top, left, bottom, right) in [0,1]."""
    top, left, height, width = window
    left = shape[1] - left - width if flip else left
    return top / shape[0], left / shape[1], (top + height) / shape[0], (left + width) / shape[1]


def make_hazy(
    clean: UInt8[np.ndarray, "h w 3"],
    depth: Shaped[np.ndarray, "h w"],
    spec: HazeSpec,
    rng: np.random.Generator,
    *,
    plain: bool = False,
    window: Sequence[float] = WHOLE,
) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """A 'hazy' and a 'clean' image; `depth` is 65535 where t = exp(−β).

    plain: only airlight and β, as in evaluation. window: the part (top, left, bottom, right), in [0,1], of a
    larger image that these show; `spec.light` applies to that image.
    """
    beta, airlight = rng.uniform(*spec.beta), np.float32(rng.uniform(*spec.airlight))
    if spec.clean and not plain and rng.random() < spec.clean:
        beta = 0.0
    if spec.flat and not plain and rng.random() < spec.flat:
        beta = 0.0
        colour = rng.uniform() * rng.uniform(0.8, 1, 3)
        clean = np.broadcast_to(_rounded(colour.astype(np.float32)), clean.shape)
    if spec.tint and not plain:
        tint = rng.uniform(1 - spec.tint, 1 + spec.tint, 3)
        airlight = np.minimum(airlight * tint, 1).astype(np.float32)
    white = spec.white and not plain and rng.random() < spec.white
    if white:
        airlight = np.float32(1)
    if spec.gamma != (1.0, 1.0) and not plain:
        gamma = math.exp(rng.uniform(*map(math.log, spec.gamma)))
        clean = _rounded(np.power(np.arange(256, dtype=np.float32) / 255, gamma)).take(clean)
    # Not `add_haze`: the farthest point of the image, at 65535, may lie outside the window.
    t = np.exp(np.float32(-beta / 65535) * depth)
    if spec.linear and not plain and not white and rng.random() < spec.linear:
        hazy = to_srgb(scatter(_LINEAR.take(clean), t, to_linear(airlight)))
    else:
        hazy = scatter(clean * np.float32(1 / 255), t, airlight)
    dim = spec.light != (1.0, 1.0) and not plain and not white
    if dim and (spec.dim == 1 or rng.random() < spec.dim):
        light = _light(spec.light, clean.shape[:2], rng, window)
        hazy, clean = hazy * light, _rounded(clean * light * np.float32(1 / 255))
    if spec.noise and not plain:
        hazy = hazy + rng.standard_normal(hazy.shape, np.float32) * np.float32(rng.uniform(0, spec.noise))
    hazy = _rounded(hazy)
    if spec.jpeg and not plain and rng.integers(2):
        hazy = _through_jpeg(hazy, int(rng.integers(spec.jpeg[0], spec.jpeg[1] + 1)))
    return {"hazy": hazy, "clean": clean}


def _light(
    span: tuple[float, float], shape: tuple[int, int], rng: np.random.Generator, window: Sequence[float]
) -> np.ndarray:
    """Factors (H,W,1) within `span`: one for all pixels, or interpolated between one at each corner."""
    corners = np.exp(rng.uniform(*np.log(span), (2, 2))).astype(np.float32)
    if rng.integers(2):
        corners[:] = corners[0, 0]
    top, left, bottom, right = window
    down = np.linspace(top, bottom, shape[0], dtype=np.float32)
    right = np.linspace(left, right, shape[1], dtype=np.float32)
    one, other = (np.outer(1 - down, corners[0, side]) + np.outer(down, corners[1, side]) for side in (0, 1))
    return (one * (1 - right) + other * right)[..., None]


def mirrored(array: np.ndarray) -> np.ndarray:
    """Mirrored left to right, channel by channel: a copy of a reversed view takes six times as long."""
    if array.ndim == 2:
        return array[:, ::-1]
    out = np.empty(array.shape, array.dtype)
    for channel in range(array.shape[2]):
        out[..., channel] = array[:, ::-1, channel]
    return out


def _resize(array: np.ndarray, size: int) -> np.ndarray:
    """A square window resized to size×size, anti-aliased; depth becomes float32."""
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize((size, size), Image.BICUBIC))
    image = Image.fromarray(array.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.BILINEAR))


def _rounded(image: np.ndarray) -> np.ndarray:
    """[0,1] → uint8, clamped."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))
