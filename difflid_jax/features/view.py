"""The view: an image as the frozen model sees it, made of the image's own pixels and nothing else.

The model needs sides that are multiples of its stride, or one fixed side. An image of another size is
resized, by at most half a multiple per side, instead of padded: reflected strips would enter its features.
"""

import numpy as np
from jaxtyping import Float32, Real
from PIL import Image


def view_size(height: int, width: int, multiple: int, side: int = 0) -> tuple[int, int]:
    """Rows and columns of the view of an image of height × width: side×side, or the nearest multiples."""
    if side:
        return side, side
    rows, columns = (max(1, round(length / multiple)) * multiple for length in (height, width))
    return rows, columns


def resized(
    image: Real[np.ndarray, "h w *channels"], size: tuple[int, int], *, average: bool = False
) -> Float32[np.ndarray, "rows columns *channels"]:
    """The image at `size`, float32 in its own range: bilinear and anti-aliased, as `jax.image.resize`.

    average: by area averages instead.
    """
    if image.shape[:2] == size:
        return image.astype(np.float32)
    method = Image.Resampling.BOX if average else Image.Resampling.BILINEAR

    def channel(c: int) -> np.ndarray:
        # One channel at a time: several float32 copies of a large photograph might not fit in memory.
        plane = image if image.ndim == 2 else image[..., c]
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size[::-1], method))

    return channel(0) if image.ndim == 2 else np.stack([channel(c) for c in range(image.shape[2])], -1)
