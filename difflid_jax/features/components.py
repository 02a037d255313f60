"""Feature maps as images: their principal components as colours."""

import numpy as np
from jaxtyping import Float, UInt8

# Standard deviations of a component that the range of a colour covers, on each side of the mean.
_DEVIATIONS = 2.5


def components_image(features: Float[np.ndarray, "rows columns c"]) -> UInt8[np.ndarray, "rows columns 3"]:
    """The first three principal components of a map's positions as red, green and blue.

    The sign of a component is arbitrary; here its largest weight is positive. A component that does not exist
    (constant features, fewer than four positions) is mid-grey.
    """
    rows, columns, channels = features.shape
    positions = features.reshape(-1, channels).astype(np.float64)
    positions -= positions.mean(0)
    axes = np.linalg.svd(positions, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    scores = np.zeros((len(positions), 3))
    scores[:, : len(axes)] = positions @ axes.T
    deviations = scores.std(0)
    shown = deviations > 1e-6 * max(1.0, np.abs(features).max())
    scores = np.where(shown, scores / np.where(shown, deviations, 1), 0)
    colours = 127.5 + 127.5 * scores / _DEVIATIONS
    return np.rint(np.clip(colours, 0, 255)).astype(np.uint8).reshape(rows, columns, 3)
