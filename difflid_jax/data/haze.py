"""Haze by the atmospheric scattering model, as RESIDE makes it (Koschmieder; Li et al. 2018, Sec. III).

    I(x) = J(x)·t(x) + A·(1 − t(x)),    t(x) = exp(−β·d(x) / max d)

J is the clean image, A the airlight, d the depth, t the transmission. With the depth of a whole NYU image
this reproduces RESIDE's own files.
"""

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from difflid_jax.baselines.guided_filter import guided_filter
from difflid_jax.data.sky import sky_mask

Airlight = float | np.floating | Shaped[np.ndarray, "..."]


def transmission(depth: Shaped[np.ndarray, "h w"], beta: float) -> Float32[np.ndarray, "h w"]:
    """t = exp(−β·d / max d) in (0,1], for a depth map in any unit.

    Raises: ValueError for a depth that is negative, not finite or zero everywhere, and for β < 0.
    """
    depth = np.asarray(depth, np.float32)
    farthest = depth.max(initial=0.0)
    if not np.isfinite(depth).all() or depth.min(initial=0.0) < 0 or farthest <= 0:
        raise ValueError("depth: expected finite values ≥ 0 that are not all 0 (fill holes first)")
    if beta < 0:
        raise ValueError(f"beta: expected 0 or more, found {beta}")
    return np.exp(np.float32(-beta / farthest) * depth)


def add_haze(
    clean: Shaped[np.ndarray, "h w 3"],
    depth: Shaped[np.ndarray, "h2 w2"],
    beta: float,
    airlight: Airlight,
    linear: bool = False,
) -> Float32[np.ndarray, "h w 3"]:
    """The hazy image I, in [0,1].

    clean: in [0,1]. depth: of the whole image. airlight: in [0,1], one number or one per channel. linear: add
    the haze to linear light, as in the air, instead of to sRGB values, as RESIDE does.

    Raises: ValueError for different sizes, and as `transmission`.
    """
    clean = np.asarray(clean, np.float32)
    if clean.shape[:2] != np.shape(depth):
        raise ValueError(f"expected a depth map of the image's {clean.shape[:2]}, found {np.shape(depth)}")
    t = transmission(depth, beta)
    if linear:
        return to_srgb(scatter(to_linear(clean), t, to_linear(airlight)))
    return scatter(clean, t, airlight)


def scatter(
    clean: Float32[np.ndarray, "h w c"], t: Float32[np.ndarray, "h w"], airlight: Airlight
) -> Float32[np.ndarray, "h w c"]:
    """`add_haze` for a known transmission t, such as that of a window."""
    # Rows of pixels times channels: NumPy is four times slower over a last axis of three.
    rows, columns, channels = clean.shape
    t = np.repeat(t, channels, axis=1)
    airlight = np.tile(np.broadcast_to(np.float32(airlight), channels), columns)
    return (clean.reshape(rows, -1) * t + airlight * (1 - t)).reshape(clean.shape)


def to_linear(srgb: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """sRGB values in [0,1] → linear light in [0,1] (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_srgb(linear: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """The inverse of `to_linear`."""
    linear = np.asarray(linear, np.float32)
    power = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, power).astype(np.float32)


def plausible_depth(
    image: Shaped[np.ndarray, "h w 3"], seed: int, sky: float = 0.0
) -> Float32[np.ndarray, "h w"]:
    """A depth map for a photograph that has none: positive, 1 at the scene's farthest point.

    A ground plane that recedes from the bottom to a horizon, then smooth random hills, both drawn from
    `seed` and fitted to the edges of `image` (uint8 or float in [0,1]) by a guided filter, so that the depth
    breaks where objects do. It is plausible, not true: good for training and for demonstrations.

    sky: depth of the sky that `sky_mask` finds, in multiples of the scene's farthest point (6 leaves 3% of
        the sky at β = 0.6); 0 skips the search for a sky.
    """
    rng = np.random.default_rng(seed)
    guide = np.asarray(image, np.float64) / (255 if np.asarray(image).dtype == np.uint8 else 1)
    rows, columns = guide.shape[:2]
    horizon = rng.uniform(0.15, 0.5)
    y = np.linspace(0, 1, rows)[:, None]
    below = np.clip((y - horizon) / (1 - horizon), 0, 1)
    plane = 1 / (1 + rng.uniform(3, 9) * below) * np.ones((1, columns))
    hills = _smooth_noise(rng, rows, columns)
    depth = plane * (1 + 0.5 * hills)
    radius = max(2, min(rows, columns) // 12)
    depth = guided_filter(guide, depth, radius, 1e-3)
    # Bright, pale regions high in the image are most often far away.
    pale = guide.min(-1) * np.clip((horizon + 0.2 - y) / 0.2, 0, 1)
    depth = depth + 0.4 * guided_filter(guide, pale, radius, 1e-3)
    depth = np.maximum(depth, 0.03 * depth.max())
    depth = (depth / depth.max()).astype(np.float32)
    if sky:
        mask = sky_mask(image)
        depth = depth + mask * (np.float32(sky) - depth)
    return depth


def _smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> Float64[np.ndarray, "h w"]:
    """Smooth noise in about [-1,1]: a 5×5 grid of random values, cosine-interpolated."""
    grid = rng.uniform(-1, 1, (5, 5))
    for axis, size in ((0, rows), (1, columns)):
        at = np.linspace(0, 4, size)
        low = np.minimum(at.astype(int), 3)
        weight = (1 - np.cos(np.pi * (at - low))) / 2
        shape = (-1, 1) if axis == 0 else (1, -1)
        weight = weight.reshape(shape)
        grid = np.take(grid, low, axis) * (1 - weight) + np.take(grid, low + 1, axis) * weight
    return grid
