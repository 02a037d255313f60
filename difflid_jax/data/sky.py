"""Where a photograph shows the sky, for haze made on the fly: a heuristic, not a segmentation network."""

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped
from scipy import ndimage

from difflid_jax.baselines.guided_filter import guided_filter, luma

_SIDE = 160  # pixels of the longer side at which the sky is looked for
_ROUGHNESS = 0.02  # largest standard deviation of the luminance in a 5×5 window
_LEAST_AREA, _LEAST_WIDTH = 0.02, 0.15  # of the image, and of its top row


def sky_mask(image: Shaped[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """How much each pixel belongs to the sky, in [0,1], of an image that is uint8 or float in [0,1].

    The sky is every smooth region that is blue, or pale and no darker than the rest of the image, and that
    touches the top edge over at least 15% of its width; a guided filter then fits its outline to the edges of
    the image. Clouds count if they are smooth; a sunset does not. A white wall or ceiling at the top edge
    looks the same and counts as sky. The result depends on the image alone.
    """
    guide = np.asarray(image, np.float64) / (255 if np.asarray(image).dtype == np.uint8 else 1)
    rows, columns = guide.shape[:2]
    step = max(1, max(rows, columns) // _SIDE)
    small = guide[: rows // step * step, : columns // step * step]
    small = small.reshape(rows // step, step, columns // step, step, 3).mean((1, 3))
    region = _sky_region(small)
    if not region.any():
        return np.zeros((rows, columns), np.float32)
    full = np.pad(
        region.repeat(step, 0).repeat(step, 1),
        ((0, rows - len(region) * step), (0, columns - region.shape[1] * step)),
        "edge",
    )
    soft = guided_filter(guide, full.astype(float), max(2, 3 * step), 1e-4)
    return np.clip((soft - 0.25) / 0.5, 0, 1).astype(np.float32)


def _sky_region(image: Float64[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    grey = luma(image)
    mean, square = ndimage.uniform_filter(grey, 5), ndimage.uniform_filter(grey * grey, 5)
    smooth = square - mean * mean < _ROUGHNESS**2
    red, green, blue = np.moveaxis(image, -1, 0)
    is_blue = (blue > 0.35) & (blue > 1.1 * red) & (blue >= green)
    is_pale = (image.min(-1) > 0.5) & (np.ptp(image, axis=-1) < 0.2) & (blue >= red - 0.05)
    labels, count = ndimage.label(ndimage.binary_opening(smooth & (is_blue | is_pale), iterations=1))
    region = np.zeros(grey.shape, bool)
    for label in range(1, count + 1):
        part = labels == label
        rest = grey[~part]
        touches = part[:3].any(0).mean() >= _LEAST_WIDTH and part.mean() >= _LEAST_AREA
        dark = rest.size and grey[part].mean() < np.median(rest) - 0.05
        if touches and (is_blue[part].mean() > 0.5 or not dark):
            region |= part
    # A window at an edge is never smooth, so the region ends two pixels too early.
    return ndimage.binary_dilation(region, iterations=2)
