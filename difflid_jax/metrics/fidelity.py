"""PSNR and SSIM: how close a restored image is to the ground truth (paper, Sec. 5.1), through dm-pix.

SSIM is Wang et al. 2004: an 11×11 Gaussian window of σ = 1.5, statistics over the positions where the
window lies inside the image, the mean over the colour channels. Two variants that published
numbers use are options here and have names in `protocols.py`.
"""

from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Float32

GAUSSIAN_SIZE = 11
UNIFORM_SIZE = 7


@jax.jit
def psnr(a: ArrayLike, b: ArrayLike) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio in dB of each pair: (B,H,W,C) floats in [0,1], twice → (B,) float32.

    The peak is 1. Equal images give infinity. Raises ValueError for arrays that are not floats or differ in
    shape.
    """
    a, b = checked_pair(a, b)
    return dm_pix.psnr(a, b)


@partial(jax.jit, static_argnames=("window", "downsample"))
def ssim(
    a: ArrayLike, b: ArrayLike, *, window: str = "gaussian", downsample: bool = False
) -> Float[Array, " b"]:
    """Structural similarity of each pair: (B,H,W,C) floats in [0,1], twice → (B,) float32.

    `window` is 'gaussian' (11×11, σ = 1.5) or 'uniform': 7×7 with the sample covariance, which is what
    scikit-image's `structural_similarity` computes by default. `downsample` first averages the
    image down by max(1, round(min(H,W)/256)), as Wang's own code and pytorch-msssim users do.
    Raises ValueError for an image smaller than the window, unequal shapes or arrays that are not floats.
    """
    a, b = checked_pair(a, b)
    if downsample:
        a, b = shrunk_to_256(a), shrunk_to_256(b)
    if window == "gaussian":
        _require_side(a, GAUSSIAN_SIZE)
        return dm_pix.ssim(a, b)
    if window == "uniform":
        _require_side(a, UNIFORM_SIZE)
        # The sample covariance is N/(N-1) times the window's mean. That factor on both of SSIM's second
        # moments is the same as dividing its constant C2 = (k2·peak)² by it.
        n = UNIFORM_SIZE**2
        return dm_pix.ssim(a, b, filter_fn=_uniform_mean, k2=0.03 * ((n - 1) / n) ** 0.5)
    raise ValueError(f"SSIM window: expected 'gaussian' or 'uniform', found {window!r}")


def checked_pair(a: ArrayLike, b: ArrayLike) -> tuple[Float32[Array, "b h w c"], Float32[Array, "b h w c"]]:
    """Both batches as float32. Raises ValueError unless they are floats of one shape (B,H,W,C)."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    for image in (a, b):
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"a metric takes floats in [0, 1], found {image.dtype}; divide 8-bit images by 255"
            )
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"a metric takes two batches of equal shape (B, H, W, C), found {a.shape} and {b.shape}"
        )
    return a.astype(jnp.float32), b.astype(jnp.float32)


def shrunk_to_256(image: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b rows columns c"]:
    """(B,H,W,C) averaged down so that the shorter side is about 256; smaller images stay as they are."""
    height, width = image.shape[1:3]
    factor = max(1, round(min(height, width) / 256))
    rows, columns = (_averaging(n, int(n / factor)) for n in (height, width))
    return jnp.einsum("bhwc,ih,jw->bijc", image, rows, columns, precision="highest")


def _require_side(image: Array, least: int) -> None:
    height, width = image.shape[1:3]
    if min(height, width) < least:
        raise ValueError(
            f"SSIM with a {least}×{least} window needs images of at least {least}×{least} pixels, "
            f"found {height}×{width}; leave SSIM out or use larger images"
        )


def _uniform_mean(image: Array) -> Array:
    window = (1, UNIFORM_SIZE, UNIFORM_SIZE, 1)
    return jax.lax.reduce_window(image, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID") / UNIFORM_SIZE**2


def _averaging(n: int, bins: int) -> np.ndarray:
    """(bins, n) matrix of PyTorch's adaptive average pooling; neighbouring bins may share a pixel."""
    matrix = np.zeros((bins, n), np.float32)
    for i in range(bins):
        first, last = i * n // bins, -(-(i + 1) * n // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix
