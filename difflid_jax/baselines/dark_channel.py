"""Dehazing without a network: the dark channel prior of He, Sun and Tang (TPAMI 2011).

Haze follows I = J·t + A(1 − t) (their Eq. 1). In a haze-free outdoor image almost every patch has a pixel
that is dark in some channel (Eq. 5), so the light in its darkest channel is haze:
t = 1 − ω min_patch min_c I_c/A_c (Eq. 12). The map is refined with the guided filter (ECCV 2010, same
authors) instead of the paper's soft matting, and J = (I − A)/max(t, t₀) + A (Eq. 22).
"""

import numpy as np
from jaxtyping import Float, Float32
from scipy.ndimage import minimum_filter

from difflid_jax.baselines.guided_filter import guided_filter

PATCH = 15
OMEGA = 0.95
BRIGHTEST = 0.001
LEAST_TRANSMISSION = 0.1
# The values of the guided filter paper's example of haze removal.
GUIDE_RADIUS, GUIDE_EPSILON = 20, 1e-3


def dark_channel_prior(image: np.ndarray) -> Float32[np.ndarray, "h w 3"]:
    """Remove haze from an image, float (H,W,3) in [0,1]; the result is clamped to [0,1].

    ω = 0.95, patches of 15×15 pixels, t₀ = 0.1 as in the paper; colour guided filter with r = 20, ε = 1e-3.
    Raises ValueError for another shape or non-finite pixels.
    """
    image = np.asarray(image, np.float64)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or not np.isfinite(image).all():
        raise ValueError(
            f"expected finite pixels of shape (H,W,3), found shape {image.shape} or NaN or infinity"
        )
    airlight = atmospheric_light(image, dark_channel(image))
    transmission = 1 - OMEGA * dark_channel(image / airlight)
    transmission = guided_filter(image, transmission, GUIDE_RADIUS, GUIDE_EPSILON)
    clean = (image - airlight) / np.maximum(transmission, LEAST_TRANSMISSION)[..., None] + airlight
    return np.clip(clean, 0, 1).astype(np.float32)


def dark_channel(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Eq. 5: the minimum over all channels in the patch around each pixel."""
    return minimum_filter(image.min(axis=2), PATCH, mode="constant", cval=np.inf)


def atmospheric_light(
    image: Float[np.ndarray, "h w 3"], dark: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "3"]:
    """Sec. 4.4: the colour of the brightest among the 0.1 % haziest pixels (largest dark channel).

    Pixels that tie with the last of them are included, so that the order of a sort does not matter. At least
    1e-3 in every channel, so that a black image causes no division by zero.
    """
    count = max(1, int(dark.size * BRIGHTEST))
    colours = image[dark >= np.partition(dark.ravel(), -count)[-count]]
    return np.maximum(colours[colours.sum(axis=1).argmax()], 1e-3)
