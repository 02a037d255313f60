"""The network: its size, its equations, and that tiles of an image equal the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.network import cim, hae
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec

SMALL = NetworkSpec(widths=(8, 16, 32), feature_channels=12, heads=2)


def parameters(spec: NetworkSpec) -> int:
    module = nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))


def randomised(module: nnx.Module, seed: int = 0) -> nnx.Module:
    """`module` with everything that starts at zero drawn, too, so that all of it takes part."""
    state = nnx.state(module)
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [
        leaf if leaf.any() else 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(module, jax.tree.unflatten(tree, drawn))
    return module


def test_the_paper_preset_has_the_papers_parameters():
    assert parameters(NetworkSpec()) == 8_619_331
    assert abs(parameters(NetworkSpec()) / 8.63e6 - 1) < 0.005


@pytest.mark.parametrize(
    "change",
    [
        {"content": "self_attention"},
        {"haze": "self_attention"},
        {"content": "self_attention", "haze": "self_attention"},
    ],
)
def test_ablations_have_about_as_many_parameters(change):
    assert abs(parameters(NetworkSpec(**change)) / parameters(NetworkSpec()) - 1) < 0.05


def test_an_untrained_network_returns_its_input():
    hazy = jax.random.uniform(jax.random.key(0), (1, 16, 24, 3), minval=-1)
    h = jnp.ones((1, 2, 3, 12))
    restored, _ = DiffLI2D(SMALL, rngs=nnx.Rngs(0))(hazy, h, h)
    np.testing.assert_array_equal(restored, hazy)


def test_cim_is_equation_6():
    f = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    h = jax.random.normal(jax.random.key(1), (2, 3, 2, 5))
    module = randomised(cim.ContentIntegration(8, 5, 2, dtype=jnp.float32, rngs=nnx.Rngs(3)))
    hc = module.compress(h).reshape(2, 6, 8)
    q, k, v = module.query(f).reshape(2, 24, 8), module.key(hc), module.value(hc)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.einsum("bnd,bmd->bnm", q[..., head], k[..., head]) / np.sqrt(4)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(np.einsum("bnm,bmd->bnd", scores / scores.sum(-1, keepdims=True), v[..., head]))
    expected = module.out(jnp.concatenate(heads, -1).reshape(f.shape)) + f
    np.testing.assert_allclose(module(f, h), expected, rtol=1e-5, atol=1e-5)


def test_hae_is_equations_7_and_8():
    f = jax.random.normal(jax.random.key(0), (2, 4, 6, 8))
    h = jax.random.normal(jax.random.key(1), (2, 4, 6, 5))  # F's size: nothing to resample
    module = randomised(hae.HazeAwareEnhancement(8, 5, dtype=jnp.float32, rngs=nnx.Rngs(3)))
    modulated = module.scale(h) * f + module.shift(h)
    gate = jax.nn.sigmoid(module.gate(modulated.mean((1, 2))))[:, None, None]
    restored, found = module(f, h)
    np.testing.assert_allclose(found, gate, rtol=1e-5)
    np.testing.assert_allclose(restored, gate * modulated + f, rtol=1e-5, atol=1e-6)


def test_hae_neither_pools_nor_tapers_padding():
    module = randomised(hae.HazeAwareEnhancement(8, 12, dtype=jnp.float32, rngs=nnx.Rngs(1)))
    f = jax.random.normal(jax.random.key(0), (1, 6, 10, 8))
    h = jax.random.normal(jax.random.key(1), (1, 3, 5, 12))
    plain, gate = module(f, h)
    for fill in (0.0, 100.0):
        padded = jnp.pad(f, [(0, 0), (0, 2), (0, 3), (0, 0)], constant_values=fill)
        found, found_gate = module(padded, h, window=(0.0, 0.0, 8 / 6, 13 / 10))
        np.testing.assert_allclose(found_gate, gate, rtol=1e-6)
        np.testing.assert_allclose(found[:, :6, :10], plain, rtol=1e-5, atol=1e-6)
    scale, shift = (x(h[:, -1, -1]) for x in (module.scale, module.shift))
    beyond = gate[0, 0, 0] * (scale[0] * 100 + shift[0]) + 100
    np.testing.assert_allclose(found[0, -1, -1], beyond, rtol=1e-5)


def test_a_step_of_bfloat16_follows_that_of_float32():
    """The CPU's compiler knows some products of bfloat16 only."""
    hazy = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    h1, h2 = (jax.random.normal(jax.random.key(i), (2, 4, 4, 12)) for i in (1, 2))

    def gradients(dtype):
        graph, weights = nnx.split(randomised(DiffLI2D(SMALL, dtype=dtype, rngs=nnx.Rngs(0))))

        @jax.jit
        def of(weights):
            return jax.grad(lambda w: jnp.mean(jnp.square(nnx.merge(graph, w)(hazy, h1, h2)[0])))(weights)

        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(of(weights))])

    found, expected = gradients(jnp.bfloat16), gradients(jnp.float32)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_tiles_with_the_whole_images_features_and_gates_equal_the_whole():
    network = randomised(DiffLI2D(SMALL, rngs=nnx.Rngs(0)))
    rows, columns, margin = 64, 96, 32
    hazy = jax.random.uniform(jax.random.key(0), (1, rows, columns, 3), minval=-1)
    h1, h2 = (jax.random.normal(jax.random.key(i), (1, 4, 6, 12)) for i in (1, 2))
    whole, found = network(hazy, h1, h2)
    tile = hazy[:, :, : columns - margin]
    window = (0.0, 0.0, 1.0, (columns - margin) / columns)
    part, _ = network(tile, h1, h2, gates=found["gates"], window=window)
    # Beyond the reach of the convolutions from the cut, nothing may differ but rounding.
    np.testing.assert_allclose(part[:, :, :32], whole[:, :, :32], atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content": "sim"}, "network.content: expected one of cim, self_attention, found 'sim'"),
        ({"haze": ""}, "network.haze"),
        ({"widths": (8, 24)}, "each must be twice"),
        ({"widths": (6, 12)}, "divisible by 4 heads"),
    ],
)
def test_a_bad_spec_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**fields)


def test_inputs_that_do_not_fit_are_refused():
    network = DiffLI2D(SMALL, rngs=nnx.Rngs(0))
    h = jnp.ones((1, 2, 3, 12))
    with pytest.raises(ValueError, match="multiples of 4, found 15×24"):
        network(jnp.zeros((1, 15, 24, 3)), h, h)
    with pytest.raises(ValueError, match="h_haze: expected 12 channels, found 7"):
        network(jnp.zeros((1, 16, 24, 3)), h, h[..., :7])


def test_the_spec_survives_json():
    assert NetworkSpec.from_dict(SMALL.to_dict()) == SMALL
