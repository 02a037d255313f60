"""Low-light baselines against their authors' PyTorch code, and the interface that all baselines share."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from convert_weights.peers import PEERS
from difflid_jax.baselines.load import NETWORKS, WITHOUT_WEIGHTS, load_baseline
from difflid_jax.weights import store
from difflid_jax.weights.rules import map_tensors

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "baselines_named.npz"
GAINS = {"zero_dce": 0.5, "retinexnet": 1.2, "uretinex_net": 1.0, "iat": 0.5}


@pytest.fixture(scope="module")
def low():
    return np.random.default_rng(0).random((2, 19, 26, 3), dtype=np.float32)


def drawn_by_name(name, named_draw):
    """The network with weights drawn by their PyTorch names and brought here by the converter's rules."""
    network = nnx.eval_shape(lambda: NETWORKS[name](rngs=nnx.Rngs(0)))
    ours = {key: np.zeros(shape, np.float32) for key, shape in store.shapes_of(network).items()}
    back = [rule.reversed() for rule in PEERS[name].rules]
    shapes = {}
    for key, zeros in ours.items():
        (rule, match) = next((rule, m) for rule in back if (m := rule.pattern.fullmatch(key)))
        shapes[rule.rename(match)] = rule.layout.forward(zeros).shape
    theirs = {key: named_draw(key, shape, gain=GAINS[name]) for key, shape in shapes.items()}
    if name == "iat":  # so that few pixels are clipped
        theirs["global_net.color_base"] += np.eye(3, dtype=np.float32)
        theirs["global_net.gamma_base"] += 1
        theirs["local_net.add_end.0.bias"] += np.float32(1.2)
        for layer in ("color_linear", "gamma_linear"):
            theirs[f"global_net.{layer}.weight"] *= np.float32(0.1)
    tensors = map_tensors(theirs, PEERS[name].rules, (), store.shapes_of(network), where=name)
    store.fill(network, tensors, where=name)
    return network


@pytest.mark.parametrize("name", list(PEERS))
def test_low_light_networks_equal_their_authors_code(name, low, named_draw):
    network = drawn_by_name(name, named_draw)
    expected = np.load(GOLDEN)
    assert expected[name].std() > 0.1
    # float32 with sums in another order: relative to the largest output.
    np.testing.assert_allclose(
        jax.jit(network)(low), expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max()
    )
    if name == "uretinex_net":
        ratio = jax.jit(lambda a, b: network.ratio(a, b))(low[:1], low[1:])
        np.testing.assert_allclose(ratio, expected["uretinex_ratio"], rtol=2e-5)


def test_published_sizes():
    sizes = {"zero_dce": 79_416, "retinexnet": 555_205, "uretinex_net": 360_653, "iat": 91_154}
    for name, expected in sizes.items():
        shapes = store.shapes_of(nnx.eval_shape(lambda name=name: NETWORKS[name](rngs=nnx.Rngs(0))))
        statistics = sum(np.prod(shape) for key, shape in shapes.items() if key.endswith((".mean", ".var")))
        assert sum(np.prod(shape) for shape in shapes.values()) - statistics == expected, name


def test_every_baseline_maps_images_to_images(low, tmp_path, drawn):
    for name in (*WITHOUT_WEIGHTS, "aod_net", "dehazenet", "zero_dce"):
        weights = None
        if name in NETWORKS:
            module = drawn(lambda name=name: NETWORKS[name](rngs=nnx.Rngs(0)))
            store.save(tmp_path / name, name, store.tensors_of(module), {})
            weights = store.read(tmp_path / name, name)
        restored = load_baseline(name, weights)(low)
        assert restored.shape == low.shape and restored.dtype == np.float32
        assert restored.min() >= 0 and restored.max() <= 1
    with pytest.raises(ValueError, match="baseline: expected one of identity, dark_channel_prior, aod_net"):
        load_baseline("clahe")
    with pytest.raises(ValueError, match=r"convert_weights\.peers --network=iat"):
        load_baseline("iat")
