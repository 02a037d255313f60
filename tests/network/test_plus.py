"""DiffLI²D+: windows, borders and tiles."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.network.difflid import pixel_unshuffle
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec, Up3x3, resize_window

SPEC = PlusSpec(widths=(8, 16), feature_channels=12, heads=2, branches=2, patch=2, head="affine")


@pytest.fixture(params=[SPEC, replace(SPEC, patch=1, head="sum")], ids=["patches", "pixels"])
def network(drawn, request):
    return drawn(lambda: DiffLI2DPlus(request.param, rngs=nnx.Rngs(0)))


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_a_window_of_resized_maps_is_the_same_part_of_the_whole():
    maps = random(0, 2, 4, 5, 3)
    whole = resize_window(maps, (32, 40), (0, 0, 1, 1))
    np.testing.assert_allclose(whole, jax.image.resize(maps, (2, 32, 40, 3), "bilinear"), atol=1e-6)
    windows = jnp.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.2, 0.5, 0.7]])
    parts = resize_window(maps, (16, 20), windows)
    np.testing.assert_allclose(parts[0], whole[0, 8:24, 20:40], atol=1e-6)
    np.testing.assert_allclose(parts[1], whole[1, :16, 8:28], atol=1e-6)


def test_a_constant_image_stays_constant(network):
    """Zero padding would draw a rim along the border. The pixels of a patch may differ."""
    h = jnp.broadcast_to(random(1, 1, 1, 1, 12), (1, 3, 3, 12))
    restored = jax.jit(network)(jnp.full((1, 24, 32, 3), 0.6), h, h)[0]
    assert jnp.ptp(pixel_unshuffle(restored, network.spec.patch), axis=(0, 1, 2)).max() <= 1e-5


def test_an_untrained_network_is_the_identity():
    network = DiffLI2DPlus(SPEC, rngs=nnx.Rngs(0))
    hazy, h = random(0, 1, 16, 16, 3), random(1, 1, 2, 2, 12)
    np.testing.assert_array_equal(jax.jit(network)(hazy, h, h)[0], hazy)


def test_a_tile_far_from_the_cut_equals_the_whole(network):
    hazy, h = random(0, 1, 32, 64, 3), random(1, 1, 4, 4, 12)
    restore = jax.jit(network)
    whole, _ = restore(hazy, h, h)
    tile, _ = restore(hazy[:, :, :48], h, h, window=(0, 0, 1, 0.75))
    np.testing.assert_allclose(tile[:, :, :24], whole[:, :, :24], atol=1e-4)


def test_the_baseline_of_the_ablations_has_the_same_size_and_reads_no_features(drawn):
    full = replace(SPEC, widths=(16, 32), feature_channels=128)
    spec = replace(full, content="self_attention", haze="self_attention")
    baseline, other = (drawn(lambda spec=spec: DiffLI2DPlus(spec, rngs=nnx.Rngs(0))) for spec in (spec, full))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (baseline, other)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02
    hazy, h = random(0, 1, 16, 16, 3), random(1, 2, 2, 2, 128)
    outputs = [np.asarray(network(hazy, h[:1], h[1:])[0]) for network in (baseline, other)]
    outputs += [np.asarray(network(hazy, h[1:], h[:1])[0]) for network in (baseline, other)]
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[1] - outputs[3]).max() > 1e-3 and np.abs(outputs[0] - hazy).max() > 1e-3
    assert not spec.can_tile


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": "none"}, "network.content: expected one of cim, self_attention, found 'none'"),
        ({"patch": 3}, "network.patch: expected 1, 2 or 4, found 3"),
        ({"head": ""}, "network.head: expected one of sum, affine, found ''"),
    ],
)
def test_the_spec_survives_json_and_refuses_what_it_lacks(fields, message):
    assert PlusSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(ValueError, match=message):
        PlusSpec(**fields)


def test_up_is_a_bilinear_enlargement_and_a_convolution(drawn):
    up = drawn(lambda: Up3x3(6, 4, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = random(0, 2, 5, 7, 6)
    large = jnp.pad(jax.image.resize(x, (2, 10, 14, 6), "bilinear"), [(0, 0), (1, 1), (1, 1), (0, 0)], "edge")
    np.testing.assert_allclose(up(x), up.conv(large), atol=1e-5)
