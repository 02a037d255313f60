"""Fréchet inception distance (Heusel et al. 2017), the FID of the paper's Table 4.

FID = |μ₁ - μ₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½), with μ and C the mean and covariance of the Inception
features (`inception.py`) of two sets of images. Only three sums per set are kept, in float64, so that
the shares of several processes merge to the statistics of the whole set.

FID is biased upwards for small sets: compare only numbers from equally many images.
"""

from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float64

from difflid_jax.parallel import bytes_of_all_processes


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums over the features f of a set of images.

    count: how many; total: Σ f, (D,); products: Σ f fᵀ, (D,D); both float64.
    """

    count: int
    total: Float64[np.ndarray, " d"]
    products: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: ArrayLike) -> "FeatureStatistics":
        """Statistics of a batch (N,D). Raises ValueError for another rank or values that are not finite."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2:
            raise ValueError(f"expected features of shape (N, D), found {features.shape}")
        if not np.isfinite(features).all():
            raise ValueError("features of the FID are not finite; an image holds NaN or infinity")
        return cls(len(features), features.sum(axis=0), features.T @ features)

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets together."""
        if self.total.shape != other.total.shape:
            raise ValueError(f"cannot merge features of {self.total.size} and of {other.total.size} channels")
        return FeatureStatistics(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    def of_all_processes(self) -> "FeatureStatistics":
        """The statistics of every process together, the same on each; all processes must call it."""
        mine = np.concatenate([[self.count], self.total, self.products.ravel()])
        size = self.total.size
        shares = [np.frombuffer(share, np.float64) for share in bytes_of_all_processes(mine.tobytes())]
        count, total, products = np.split(np.sum(shares, axis=0), [1, 1 + size])
        return FeatureStatistics(int(count[0]), total, products.reshape(size, size))

    def mean(self) -> Float64[np.ndarray, " d"]:
        return self.total / self.count

    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """The unbiased covariance (divided by N - 1), as numpy.cov."""
        if self.count < 2:
            raise ValueError(f"FID needs at least two images in each set, found {self.count}")
        mean = self.mean()
        return (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The Fréchet distance of two Gaussians with the means and covariances of `a` and `b`.

    tr (C₁C₂)^½ is computed as the sum of the roots of the eigenvalues of S C₂ S with S = C₁^½: the same
    number, but every matrix is symmetric, so that it stays real and needs no offset if a covariance
    is singular (fewer images than channels). Raises ValueError for sets of fewer than two images.
    """
    difference = a.mean() - b.mean()
    covariance_a, covariance_b = a.covariance(), b.covariance()
    root = _symmetric_root(covariance_a)
    eigenvalues = np.linalg.eigvalsh(root @ covariance_b @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * cross
    return max(float(distance), 0.0)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
