"""The release against the authors' PyTorch code (golden/difflid_release.*)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert_weights.difflid_release import convert
from difflid_jax.network.release import ReleasedDiffLI2D, ReleaseSpec
from difflid_jax.weights import store
from difflid_jax.weights.torch_file import read_torch

GOLDEN = Path(__file__).parents[1] / "golden"


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module")
def reference():
    with np.load(GOLDEN / "difflid_release.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def released():
    spec, tensors = convert(read_torch(GOLDEN / "difflid_release.pth"), where="golden")
    network = nnx.eval_shape(lambda: ReleasedDiffLI2D(spec, rngs=nnx.Rngs(0)))
    store.fill(network, tensors, where="golden")
    return network


@pytest.fixture(scope="module")
def maps(reference):
    return tuple(nhwc(reference[name]) for name in ("x", "h1", "h2"))


def test_output_in_eval_mode(released, reference, maps):
    restored, aux = nnx.jit(lambda network, *maps: network(*maps))(released, *maps)
    # float32, other order of sums: 4e-7 was measured.
    assert relative(restored, nhwc(reference["out_eval"])) <= 2e-6
    assert [gate.shape for gate in aux["gates"]] == [(2, 1, 1, 16)] * 7


def test_output_and_gradients_in_train_mode(released, reference, maps):
    graph, parameters, rest = nnx.split(released, nnx.Param, ...)

    @jax.jit
    def value_and_gradients(parameters):
        def loss(parameters):
            network = nnx.merge(graph, parameters, rest, copy=True)
            restored, _ = network(*maps, train=True)
            return jnp.abs(restored - 0.5 * maps[0]).mean(), (restored, nnx.state(network, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    (loss, (restored, statistics)), gradients = value_and_gradients(parameters)
    assert relative(restored, nhwc(reference["out_train"])) <= 2e-6
    assert abs(loss - reference["loss"]) <= 1e-6
    found = nnx.merge(graph, gradients, rest)
    for name, gradient in {
        "init_conv.weight": found.stem.kernel,
        "downs.0.cim.to_q.weight": found.down_blocks[0].cim.to_q.kernel,
        "downs.0.hae.gamma_conv1.weight": found.down_blocks[0].hae.gamma_in.kernel,
        "bot.cim.ht1_conv.weight": found.bottom_block.cim.align.kernel,
        "final_conv.bias": found.head.bias,
    }.items():
        expected = reference[f"grad.{name}"]
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
        assert relative(gradient[...], expected) <= 1e-5, name
    # The running statistics move a tenth of the way to the batch's.
    features = nnx.merge(graph, parameters, rest).down_blocks[0].cim.align(maps[1])
    before = released.down_blocks[0].cim.norm_k
    after = statistics["down_blocks"][0]["cim"]["norm_k"]
    for old, new, batch in (
        (before.mean, after["mean"], features.mean((0, 1, 2))),
        (before.var, after["var"], features.var((0, 1, 2))),
    ):
        np.testing.assert_allclose(new[...], 0.9 * old[...] + 0.1 * batch, rtol=1e-4, atol=1e-6)


def test_the_number_of_parameters_is_the_release_s():
    network = nnx.eval_shape(lambda: ReleasedDiffLI2D(ReleaseSpec(), rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == 754_633


def test_a_tile_with_the_whole_s_gates_and_features_is_that_part_of_the_whole(released):
    hazy, content, haze = (
        jax.random.uniform(jax.random.key(i), (1, 32, 96, channels), minval=-1)
        for i, channels in enumerate((3, 6, 6))
    )
    run = nnx.jit(lambda network, x, gates, window: network(x, content, haze, gates=gates, window=window))
    whole, aux = nnx.jit(lambda network, x: network(x, content, haze))(released, hazy)
    window = (0.0, 0.0, 1.0, 64 / 96)
    tile, _ = run(released, hazy[:, :, :64], aux["gates"], window)
    # 24 px away from the cut the network does not see it.
    np.testing.assert_allclose(tile[:, :, :40], whole[:, :, :40], atol=1e-5)


def test_sides_that_do_not_fit_are_refused(released):
    with pytest.raises(ValueError, match="multiples of 8, found 12×16"):
        released(jnp.zeros((1, 12, 16, 3)), *(jnp.zeros((1, 12, 16, 6)),) * 2)
    with pytest.raises(ValueError, match="unknown fields"):
        ReleaseSpec.from_dict({"network": "release", "levels": 4})
