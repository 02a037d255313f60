"""The Fréchet distance against its definition, and statistics that merge."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from difflid_jax.metrics.fid import FeatureStatistics, frechet_distance


def features(count: int, channels: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((channels, channels)) / 3
    return generator.standard_normal((count, channels)) @ mixing + generator.random(channels)


def test_the_distance_is_that_of_pytorch_fid(golden):
    recorded = np.load(golden / "inception_fid_named.npz")
    a, b = (FeatureStatistics.of(recorded[name]) for name in ("fid_a", "fid_b"))
    assert frechet_distance(a, b) == pytest.approx(float(recorded["fid"]), rel=1e-9)


def test_the_distance_is_the_formula():
    a, b = features(60, 12, seed=0), features(50, 12, seed=1)
    covariance_a, covariance_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(covariance_a @ covariance_b).real
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariance_a + covariance_b - 2 * root)
    found = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert found == pytest.approx(wanted, rel=1e-9)
    assert found == pytest.approx(
        frechet_distance(FeatureStatistics.of(b), FeatureStatistics.of(a)), rel=1e-9
    )


def test_fewer_images_than_channels_give_a_finite_distance():
    # Identical singular covariances and shifted means: the distance is the squared shift alone.
    a = features(5, 40, seed=2)
    shifted = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a + 0.5))
    # Eigenvalues of zero come out as about 1e-16, and their roots as 1e-8 each.
    assert shifted == pytest.approx(40 * 0.25, rel=1e-5)
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a)) < 1e-4


def test_shares_add_up_to_the_statistics_of_the_whole():
    whole = features(100, 8, seed=3)
    shares = [FeatureStatistics.of(part) for part in np.split(whole, [1, 30, 31])]
    merged = shares[0] + shares[1] + shares[2] + shares[3]
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean(), whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.covariance(), np.cov(whole, rowvar=False), rtol=1e-11)


def test_float32_features_are_summed_in_float64():
    # 1e4 + small differences: float32 sums of squares would lose the covariance altogether.
    low = (1e4 + features(2000, 3, seed=4)).astype(np.float32)
    wanted = np.cov(low.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(FeatureStatistics.of(low).covariance(), wanted, rtol=1e-5)


def test_one_process_alone_gathers_its_own_statistics_bit_for_bit():
    statistics = FeatureStatistics.of(features(9, 6, seed=5))
    gathered = statistics.of_all_processes()
    assert gathered.count == 9
    np.testing.assert_array_equal(gathered.total, statistics.total)
    np.testing.assert_array_equal(gathered.products, statistics.products)


def test_bad_input_is_refused():
    one = FeatureStatistics.of(features(1, 4, seed=6))
    two = FeatureStatistics.of(features(2, 4, seed=7))
    with pytest.raises(ValueError, match="at least two images in each set, found 1"):
        frechet_distance(one, two)
    with pytest.raises(ValueError, match="4 and of 5 channels"):
        two + FeatureStatistics.of(features(2, 5, seed=8))
    with pytest.raises(ValueError, match="not finite"):
        FeatureStatistics.of(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match=r"shape \(N, D\), found \(3,\)"):
        FeatureStatistics.of(np.zeros(3))
