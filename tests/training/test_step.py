"""One step on the real parts: what changes, what does not, and by how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from difflid_jax.features.build import build_features
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.training import optimizer as rules
from difflid_jax.training.loss import restoration_loss
from difflid_jax.training.optimizer import OptimizerSpec
from difflid_jax.training.step import initial_state, make_step

SPEC = OptimizerSpec(steps=100, halve_every=10, learning_rate=1e-2, ema=0.5)


@pytest.fixture(scope="module")
def parts(tiny, drawn):
    features = build_features("h_space", tiny.prior)
    spec = NetworkSpec((8, 16), features.channels, heads=2)
    graph, params = nnx.split(drawn(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0))))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    batch = {"hazy": jnp.asarray(images[0]), "clean": jnp.asarray(images[1])}
    return features, graph, params, batch


@pytest.fixture(scope="module")
def stepped(parts):
    """Two steps from one start: [(state, metrics), …], and the frozen parameters before and after."""
    features, graph, params, batch = parts
    step = jax.jit(make_step(restoration_loss(graph, features.apply), SPEC))
    before = jax.tree.map(np.asarray, features.frozen)
    state, done = initial_state(params, SPEC, seed=5), []
    for _ in range(2):
        state, metrics = step(state, features.frozen, batch)
        done.append((state, metrics))
    return done, before, features.frozen


def test_the_loss_is_equation_9_with_the_key_of_the_step_and_may_add_frequencies(parts, stepped):
    features, graph, params, batch = parts
    key = jax.random.fold_in(jax.random.key(5), 0)
    hazy, clean = (jnp.asarray(batch[name], jnp.float32) / 127.5 - 1 for name in ("hazy", "clean"))
    forward = jax.jit(lambda p, f: nnx.merge(graph, p)(hazy, *features.apply(f, hazy, key))[0])
    restored = np.asarray(forward(params, features.frozen))
    metrics = stepped[0][0][1]
    assert float(metrics["loss"]) == pytest.approx(np.abs(restored - clean).mean(), rel=1e-5)
    error = (np.clip(restored, -1, 1) - clean) / 2
    psnr = np.mean(-10 * np.log10(np.mean(error**2, axis=(1, 2, 3))))
    assert float(metrics["psnr"]) == pytest.approx(psnr, rel=1e-5)
    with_frequencies = jax.jit(restoration_loss(graph, features.apply, lambda step: 0.02 * step))
    loss = with_frequencies(params, features.frozen, batch, key, 5)[0]
    spectrum = np.fft.rfft2(restored - clean, axes=(1, 2))
    distance = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert float(loss) == pytest.approx(np.abs(restored - clean).mean() + 0.1 * distance, rel=1e-5)


def test_every_parameter_moves_and_the_frozen_network_does_not(parts, stepped):
    done, before, after = stepped
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == np.asarray(b)).all()), before, after)))
    start, end = jax.tree.leaves(parts[2]), jax.tree.leaves(done[-1][0].params)
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(start, end, strict=True))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done[-1][0].params))


def test_the_first_update_is_adams(parts, stepped):
    state, metrics = stepped[0][0]
    mu, nu = state.optimizer[1].mu, state.optimizer[1].nu

    def check(start, end, mean, square):
        # After one step the corrected moments are g and g², for any β.
        gradient = np.asarray(mean) / (1 - SPEC.b1)
        np.testing.assert_allclose(np.asarray(square) / (1 - SPEC.b2), gradient**2, rtol=1e-4, atol=1e-20)
        update = SPEC.learning_rate * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(np.asarray(start) - update, np.asarray(end), rtol=1e-4, atol=2e-6)
        return float((gradient**2).sum())

    squares = jax.tree.map(check, parts[2], state.params, mu, nu)
    assert float(metrics["gradient_norm"]) == pytest.approx(sum(jax.tree.leaves(squares)) ** 0.5, rel=1e-4)


def test_a_step_is_the_same_with_x64():
    """A run begun without JAX_ENABLE_X64 can be resumed with it."""

    def loss(params, frozen, batch, key, step):
        noise = jax.random.normal(key, (4, 2), jnp.float32)
        return jnp.mean((params["w"] - noise) ** 2), {}

    def after(x64):
        with jax.enable_x64(x64):
            state = initial_state({"w": jnp.ones((4, 2), jnp.float32)}, SPEC, seed=5)
            return jax.tree.leaves(jax.jit(make_step(loss, SPEC))(state, None, None)[0])

    for value, wanted in zip(after(True), after(False), strict=True):
        assert value.dtype == wanted.dtype
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_the_average_follows_the_parameters(parts, stepped):
    (first, _), (second, _) = stepped[0]

    def check(start, one, two, mean_one, mean_two):
        # Decays min(0.5, 1/10) and min(0.5, 2/11).
        expected = 0.1 * start + 0.9 * one
        np.testing.assert_allclose(mean_one, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean_two, 2 / 11 * expected + 9 / 11 * two, rtol=1e-5, atol=1e-6)

    jax.tree.map(check, parts[2], first.params, second.params, first.ema, second.ema)
    assert first.eval_params is first.ema


def test_each_step_draws_its_own_noise_and_the_same_again():
    def loss(params, frozen, batch, key, step):
        return jnp.sum(params["w"]), {"drawn": jax.random.uniform(key)}

    step = jax.jit(make_step(loss, SPEC))
    params = {"w": jnp.zeros(1)}

    def draws(seed):
        state, drawn = initial_state(params, SPEC, seed), []
        for _ in range(3):
            state, metrics = step(state, None, None)
            drawn.append(float(metrics["drawn"]))
        return drawn

    assert draws(5) == draws(5) and len({*draws(5), *draws(6)}) == 6


def test_bfloat16_computes_on_float32_parameters(parts, drawn):
    features, _, _, batch = parts
    spec = NetworkSpec((8, 16), features.channels, heads=2)
    graph, params = nnx.split(drawn(lambda: DiffLI2D(spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
    step = make_step(restoration_loss(graph, features.apply), SPEC)
    state = initial_state(params, SPEC, seed=5)
    after, metrics = jax.eval_shape(step, state, features.frozen, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.ema))} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "halve"}, {0: 1.0, 9: 1.0, 10: 0.5, 25: 0.25}),
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0, 200: 0.0}),
        ({"schedule": "cosine", "cycles": 2}, {0: 1.0, 25: 0.5, 50: 1.0, 75: 0.5, 100: 0.0, 200: 0.0}),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 3: 1.0, 99: 1.0}),
    ],
)
def test_learning_rates(options, rates):
    spec = OptimizerSpec(steps=100, halve_every=10, learning_rate=2e-4, **options)
    for step, share in rates.items():
        assert float(rules.learning_rate(spec, step)) == pytest.approx(2e-4 * share, abs=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "step"}, "schedule: expected one of halve, cosine, constant, found 'step'"),
        ({"learning_rate": 0.0}, "learning_rate: expected more than 0, found 0.0"),
        ({"ema": 1.0}, "ema: expected 0 ≤ ema < 1, found 1.0"),
        ({"clip": -1.0}, r"clip: expected 0 \(off\) or more, found -1.0"),
        ({"halve_every": 0}, "halve_every: expected at least 1, found 0"),
    ],
)
def test_a_value_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=rf"optimizer\.{message}"):
        OptimizerSpec(**{"steps": 1, "halve_every": 1} | options)


def test_clipping_bounds_the_norm_and_decay_pulls_to_zero():
    gradients, params = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([1.0, -1.0])}
    clipped = rules.direction(OptimizerSpec(steps=1, halve_every=1, clip=1.0))
    _, state = clipped.update(gradients, clipped.init(params), params)
    np.testing.assert_allclose(state[1].mu["w"], 0.1 * np.array([0.6, 0.8]), rtol=1e-6)
    plain = rules.direction(OptimizerSpec(steps=1, halve_every=1))
    decayed = rules.direction(OptimizerSpec(steps=1, halve_every=1, weight_decay=0.1))
    updates = [rule.update(gradients, rule.init(params), params)[0]["w"] for rule in (plain, decayed)]
    np.testing.assert_allclose(updates[1] - updates[0], 0.1 * params["w"], rtol=1e-5)
