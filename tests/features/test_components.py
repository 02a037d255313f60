import numpy as np

from difflid_jax.features.components import components_image


def test_a_component_is_a_colour():
    """Three orthogonal patterns, of falling variance, in 16 channels: red, green and blue."""
    y, x = np.mgrid[:8, :8]
    patterns = np.stack(
        [np.where(x < 4, 1, -1), np.where(y < 4, 1, -1), np.where((x < 4) ^ (y < 4), 1, -1)], -1
    )
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 3)))[0].T
    image = components_image((7 + patterns * [3, 2, 1] @ axes).astype(np.float32))
    # One standard deviation of 2.5 on either side of the middle; which side is arbitrary.
    assert set(np.unique(image)) <= {76, 77, 178, 179}
    for c in range(3):
        assert abs(np.corrcoef(image[..., c].ravel(), patterns[..., c].ravel())[0, 1]) > 0.99


def test_what_a_map_lacks_is_grey():
    assert (components_image(np.full((4, 4, 8), 3, np.float32)) == 128).all()
    assert components_image(np.ones((1, 1, 8), np.float32)).shape == (1, 1, 3)
