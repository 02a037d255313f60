"""Bilinear resizing against `jax.image`, within an image and beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.layers.resize import average, bilinear_weights, enlarge_twice, resize


@pytest.mark.parametrize("size", [(12, 14), (3, 5), (2, 3)])  # enlarged, the same, shrunk
def test_a_whole_map_is_resized_as_jax_image_does(size):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    np.testing.assert_allclose(resize(x, size), jax.image.resize(x, (2, *size, 4), "linear"), atol=1e-6)


def test_enlarging_twice_is_resizing():
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 4))
    np.testing.assert_allclose(enlarge_twice(x), resize(x, (6, 2)), atol=1e-6)


def test_a_part_is_placed_as_jax_image_does():
    (weights, inside), _ = bilinear_weights((12, 1), (3, 1), (0.25, 0, 1.0, 1))
    scale = jnp.asarray([12 / (0.75 * 3)])
    expected = jax.image.scale_and_translate(
        jnp.eye(3), (12, 3), (0,), scale, -0.25 * 3 * scale, method="linear"
    )
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_array_equal(inside, 1)


def test_padding_continues_the_edge_and_is_not_averaged():
    x = jax.random.normal(jax.random.key(0), (1, 3, 5, 4))
    window = (0.0, 0.0, 8 / 6, 13 / 10)
    found = resize(x, (8, 13), window)
    np.testing.assert_allclose(found[:, :6, :10], resize(x, (6, 10)), atol=1e-6)
    np.testing.assert_allclose(found[0, -1, -1], x[0, -1, -1], atol=1e-6)
    padded = jnp.pad(found[:, :6, :10], [(0, 0), (0, 2), (0, 3), (0, 0)], constant_values=100.0)
    expected = found[:, :6, :10].mean((1, 2), keepdims=True)
    np.testing.assert_allclose(average(padded, window), expected, atol=1e-6)
    # A pixel that is half inside, as of a deep level, counts half.
    halves = average(jnp.asarray([0.0, 3.0]).reshape(1, 2, 1, 1), (0, 0, 2 / 1.5, 1))
    np.testing.assert_allclose(halves, 1.0, rtol=1e-6)
