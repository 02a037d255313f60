"""The guided filter of He, Sun and Tang (ECCV 2010) in NumPy, in time independent of the radius.

In every window the output is a linear function of the guide, q = aᵀI + b, fitted to the input p by ridge
regression (their Eqs. 5, 6; with a guide in colour 14, 15); a pixel's output averages the functions of all
windows that cover it (Eqs. 8, 16). Windows are truncated at the border, as in the authors' code.
"""

import numpy as np
from jaxtyping import Float, Float64

_LUMA = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])


def luma(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Grey of an RGB image, with the coefficients of Matlab's `rgb2gray`."""
    return image @ _LUMA


def box_mean(values: Float64[np.ndarray, "h w *c"], radius: int) -> Float64[np.ndarray, "h w *c"]:
    """Mean over the (2·radius + 1)² window around each pixel, truncated at the border."""
    for axis in (0, 1):
        values = _running_mean(values, radius, axis)
    return values


def guided_filter(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Smooth `values` (H,W) along the edges of `guide`, (H,W) grey or (H,W,3) colour; float64 (H,W).

    epsilon: the ridge regularization, in units of the guide's variance (guide in [0,1]). Raises ValueError if
    the shapes do not fit.
    """
    guide, values = np.asarray(guide, np.float64), np.asarray(values, np.float64)
    if values.ndim != 2 or guide.shape not in (values.shape, (*values.shape, 3)):
        raise ValueError(
            f"expected values (H,W) and a guide (H,W) or (H,W,3), found {values.shape} and {guide.shape}"
        )
    guide = guide.reshape(*values.shape, -1)
    mean_guide, mean_values = box_mean(guide, radius), box_mean(values, radius)
    covariance = box_mean(guide * values[..., None], radius) - mean_guide * mean_values[..., None]
    slope = _regress(guide, mean_guide, covariance, radius, epsilon)
    offset = mean_values - (slope * mean_guide).sum(-1)
    return (box_mean(slope, radius) * guide).sum(-1) + box_mean(offset, radius)


def _regress(
    guide: Float64[np.ndarray, "h w c"],
    mean: Float64[np.ndarray, "h w c"],
    covariance: Float64[np.ndarray, "h w c"],
    radius: int,
    epsilon: float,
) -> Float64[np.ndarray, "h w c"]:
    """(Σ + ε·1)⁻¹ · cov(guide, values) in each window; Σ is the guide's covariance."""
    channels = guide.shape[-1]
    if channels == 1:
        variance = box_mean(guide * guide, radius) - mean * mean
        return covariance / (variance + epsilon)
    first, second = np.triu_indices(channels)
    upper = box_mean(guide[..., first] * guide[..., second], radius) - mean[..., first] * mean[..., second]
    rr, rg, rb, gg, gb, bb = np.moveaxis(upper + epsilon * (first == second), -1, 0)
    # The symmetric 3×3 inverse written out: a batched np.linalg.solve takes ten times as long.
    c_rr, c_rg, c_rb = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c_gg, c_gb, c_bb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * c_rr + rg * c_rg + rb * c_rb
    r, g, b = np.moveaxis(covariance, -1, 0)
    slope = (c_rr * r + c_rg * g + c_rb * b, c_rg * r + c_gg * g + c_gb * b, c_rb * r + c_gb * g + c_bb * b)
    return np.stack(slope, axis=-1) / determinant[..., None]


def _running_mean(values: np.ndarray, radius: int, axis: int) -> Float64[np.ndarray, "..."]:
    length = values.shape[axis]
    sums = np.zeros([n + (i == axis) for i, n in enumerate(values.shape)])
    np.cumsum(values, axis=axis, out=sums[(slice(None),) * axis + (slice(1, None),)])
    positions = np.arange(length)
    first, stop = np.maximum(positions - radius, 0), np.minimum(positions + radius + 1, length)
    count = (stop - first).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return (sums.take(stop, axis) - sums.take(first, axis)) / count
