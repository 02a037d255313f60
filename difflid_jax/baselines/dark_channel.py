"""Dehazing without a network: the dark channel prior of He, Sun and Tang (TPAMI 2011).

Haze follows I = J·t + A(1 − t) (their Eq. 1). In a haze-free outdoor picture almost every patch holds a
pixel that is dark in some channel (Eq. 5); what light its darkest channel shows is therefore haze:
t = 1 − ω min_patch min_c I_c/A_c (Eq. 12). The map is refined with the guided filter (ECCV 2010, same
authors) where the first paper used soft matting, and J = (I − A)/max(t, t₀) + A (Eq. 22).
"""

import numpy as np

from difflid_jax.baselines.guided_filter import guided_filter

PATCH = 15
OMEGA = 0.95
BRIGHTEST = 0.001
LEAST_TRANSMISSION = 0.1
# The values of the guided filter paper's own example of haze removal.
GUIDE_RADIUS, GUIDE_EPSILON = 20, 1e-3


def dark_channel_prior(image: np.ndarray) -> np.ndarray:
    """Remove haze from a picture, float (H,W,3) in [0,1] → float32 of the same shape, clamped to [0,1].

    ω = 0.95, patches of 15×15, t₀ = 0.1 as in the paper; guided filter in colour, r = 20, ε = 1e-3.

    Raises: ValueError for another shape or non-finite pixels.
    """
    image = np.asarray(image, np.float64)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or not np.isfinite(image).all():
        raise ValueError(
            f"expected finite pixels of shape (H,W,3), found shape {image.shape} or NaN, infinity"
        )
    airlight = atmospheric_light(image, dark_channel(image))
    transmission = 1 - OMEGA * dark_channel(image / airlight)
    transmission = guided_filter(image, transmission, GUIDE_RADIUS, GUIDE_EPSILON)
    clean = (image - airlight) / np.maximum(transmission, LEAST_TRANSMISSION)[..., None] + airlight
    return np.clip(clean, 0, 1).astype(np.float32)


def dark_channel(image: np.ndarray, patch: int = PATCH) -> np.ndarray:
    """Eq. 5: the least value of any channel in the patch around each pixel, (H,W,3) → (H,W)."""
    darkest = image.min(axis=2)
    for axis in (0, 1):
        darkest = _running_minimum(darkest, patch, axis)
    return darkest


def atmospheric_light(image: np.ndarray, dark: np.ndarray) -> np.ndarray:
    """Sec. 4.4: among the 0.1 % haziest pixels (largest dark channel) the brightest one's colour, (3,).

    Pixels that tie with the last of them count too: which one a sort puts first must not matter. Not less
    than 1e-3 in any channel, so that a black picture divides by something.
    """
    count = max(1, int(dark.size * BRIGHTEST))
    colours = image[dark >= np.partition(dark.ravel(), -count)[-count]]
    return np.maximum(colours[colours.sum(axis=1).argmax()], 1e-3)


def _running_minimum(values: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Minimum over a centred window of odd `width`; the window doubles until it is wide enough."""
    values = np.moveaxis(values, axis, 0)
    length, half = values.shape[0], width // 2
    border = ((half, half),) + ((0, 0),) * (values.ndim - 1)
    window = np.pad(values, border, constant_values=np.inf)
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        window = np.minimum(window[:-step], window[step:])
        reach += step
    return np.moveaxis(window[:length], 0, axis)
