"""The network: its size, its equations, and that tiles of a picture equal the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.layers import attention
from difflid_jax.layers.cpu import enlarged, from_few, to_few
from difflid_jax.network import cim, hae
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec, _join

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


@pytest.mark.parametrize("maps", [(2, 3), (4, 9)])  # few columns are summed up, many multiplied
def test_hae_and_its_gradients_are_those_of_maps_brought_to_full_size(maps):
    module = randomised(hae.HazeAwareEnhancement(8, 12, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, weights = nnx.split(module)
    f = jax.random.normal(jax.random.key(0), (2, 11, 14, 8))
    h = jax.random.normal(jax.random.key(1), (2, *maps, 12))

    def by_formula(weights, f, h):
        module = nnx.merge(graph, weights)
        scale, shift = (jax.image.resize(x, f.shape, "linear") for x in (module.scale(h), module.shift(h)))
        modulated = scale * f + shift
        return jax.nn.sigmoid(module.gate(modulated.mean((1, 2), keepdims=True))) * modulated + f

    def found(weights, f, h):
        return nnx.merge(graph, weights)(f, h)[0]

    np.testing.assert_allclose(found(weights, f, h), by_formula(weights, f, h), rtol=1e-5, atol=1e-5)
    gradients, expected = (
        jax.grad(lambda *x, of=of: jnp.sum(jnp.square(of(*x))), (0, 1, 2))(weights, f, h)
        for of in (found, by_formula)
    )
    for gradient, number in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(gradient, number, rtol=1e-4, atol=1e-3)


def test_hae_places_as_jax_image_does_and_neither_pools_nor_tapers_padding():
    """`scale_and_translate` is the reference inside the image; padding continues its edge."""
    window, few, many = (0.25, 1.0), 3, 12
    weights, inside = hae._bilinear_weights(many, few, *window)
    scale = jnp.asarray([many / (0.75 * few)])
    expected = jax.image.scale_and_translate(
        jnp.eye(few), (many, few), (0,), scale, -0.25 * few * scale, method="linear"
    )
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_array_equal(inside, 1)

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


def test_joining_is_the_convolution_of_the_concatenation():
    conv = randomised(nnx.Conv(8, 4, (1, 1), rngs=nnx.Rngs(0)))
    a, b = (jax.random.normal(jax.random.key(i), (2, 5, 6, 4)) for i in (0, 1))
    np.testing.assert_allclose(
        _join(conv, a, b), conv(jnp.concatenate([a, b], axis=-1)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_convolutions_in_fewer_steps_are_the_convolutions(size):
    conv = randomised(nnx.Conv(6, 3, (3, 3), padding=1, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, *size, 6))

    def of_enlarged(conv, x):
        return conv(jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 6), "linear"))

    def squares(function):
        return nnx.grad(lambda conv, x: jnp.sum(jnp.square(function(conv, x))), argnums=(0, 1))(conv, x)

    def itself(conv, x):
        return conv(x)

    for found, expected in ((enlarged, of_enlarged), (to_few, itself), (from_few, itself)):
        np.testing.assert_allclose(found(conv, x), expected(conv, x), rtol=1e-5, atol=1e-5)
        for gradient, number in zip(*map(jax.tree.leaves, map(squares, (found, expected))), strict=True):
            np.testing.assert_allclose(gradient, number, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("keys", [(2, 3), (8, 9)])  # few keys fold into the projections, many do not
def test_attention_is_the_same_in_any_order_and_chunk(keys, batch, monkeypatch):
    f = jax.random.normal(jax.random.key(0), (batch, 5, 7, 8))
    k, v = (jax.random.normal(jax.random.key(i), (batch, *keys, 12)) for i in (1, 2))
    query, out = (randomised(nnx.Linear(*size, rngs=nnx.Rngs(3))) for size in ((8, 12), (12, 8)))
    q = query(f).reshape(batch, 35, 3, 4)

    def by_formula(k, v):
        k, v = (x.reshape(batch, -1, 3, 4) for x in (k, v))
        return out(jax.nn.dot_product_attention(q, k, v).reshape(batch, 5, 7, 12))

    def summed(attention):
        return jax.grad(lambda k, v: jnp.sum(jnp.square(attention(k, v))), (0, 1))(k, v)

    expected, expected_gradients = by_formula(k, v), summed(by_formula)
    for queries in (batch * 35, 35, 10):  # all at once, a picture after the other, chunks of a picture
        monkeypatch.setitem(attention._MAX_SCORES, "cpu", queries * 3 * k.shape[1] * k.shape[2])
        found = attention.attend(f, k, v, query=query, out=out, heads=3)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        gradients = summed(lambda k, v: attention.attend(f, k, v, query=query, out=out, heads=3))
        for gradient, number in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, number, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [2, 4])  # for 64 keys, 4 heads project first
@pytest.mark.parametrize("keys", [4, 64])
def test_attention_to_a_key_far_above_the_others_is_its_value(keys, heads):
    f = jnp.ones((1, 3, 3, 8))
    k = jnp.zeros((1, 1, keys, 8)).at[0, 0, 1].set(1e6)
    v = jax.random.normal(jax.random.key(0), k.shape)
    unchanged = nnx.Linear(8, 8, kernel_init=lambda *_: jnp.eye(8), rngs=nnx.Rngs(0))
    for sign, expected in ((1, v[:, :, 1]), (-1, (v.sum(2) - v[:, :, 1]) / (keys - 1))):
        found = attention.attend(f, sign * k, v, query=unchanged, out=unchanged, heads=heads)
        np.testing.assert_allclose(found, jnp.broadcast_to(expected[:, None], found.shape), rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])  # for 64 keys, 4 heads project first
@pytest.mark.parametrize("keys", [4, 64])
def test_attention_to_keys_far_above_the_others_is_the_softmax(keys, heads):
    f = jnp.ones((1, 3, 3, 4))
    v = jax.random.normal(jax.random.key(0), (1, 1, keys, 4))
    unchanged = nnx.Linear(4, 4, kernel_init=lambda *_: jnp.eye(4), rngs=nnx.Rngs(0))
    root = (4 // heads) ** 0.5

    def found(k):
        return attention.attend(f, k, v, query=unchanged, out=unchanged, heads=heads)

    def expected(k):
        scores = k.reshape(1, keys, heads, -1).sum(-1) / root
        weights = jnp.repeat(jax.nn.softmax(scores, axis=1), 4 // heads, axis=-1)
        return jnp.broadcast_to((weights * v[:, 0]).sum(1), f.shape)

    def with_gradient(function):
        return jax.jit(lambda k: (function(k), jax.grad(lambda k: jnp.sum(jnp.square(function(k))))(k)))

    found, expected = with_gradient(found), with_gradient(expected)
    # The bound, 560, lies between 500 and 510 for one head (√5/2 · above), 250 and 260 for four (√5 · above).
    for above in (30, 50, 60, 70, 200, 250, 260, 500, 510, 900):
        k = jnp.zeros((1, 1, keys, 4)).at[0, 0, 1].set(above / root).at[0, 0, 2].set((above - 1) / root)
        (value, gradient), (value_expected, gradient_expected) = found(k), expected(k)
        np.testing.assert_allclose(value, value_expected, rtol=1e-5, atol=1e-6, err_msg=f"{above}")
        np.testing.assert_allclose(gradient, gradient_expected, rtol=1e-4, atol=1e-5, err_msg=f"{above}")


def test_tiles_with_the_whole_pictures_features_and_gates_equal_the_whole():
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
