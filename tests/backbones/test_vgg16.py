"""VGG-16 against torchvision, and the weights that need no download."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert_weights.perceptual import convert
from difflid_jax.backbones.imagenet import normalize
from difflid_jax.backbones.vgg16 import VGG16, load_vgg16
from difflid_jax.weights import store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# torchvision's `features`: the number of each convolution and its channels.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip


@pytest.fixture(scope="module")
def state(named_draw) -> dict[str, np.ndarray]:
    shapes = {}
    for number, (channels, out) in CONVOLUTIONS.items():
        shapes[f"features.{number}.weight"] = (out, channels, 3, 3)
        shapes[f"features.{number}.bias"] = (out,)
    return {name: named_draw(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def network(state) -> VGG16:
    network = nnx.eval_shape(lambda: VGG16(rngs=nnx.Rngs(0)))
    heads = {"classifier.0.weight": np.zeros((4096, 25088), np.int8), "classifier.0.bias": np.zeros(4096)}
    store.fill(network, convert("vgg16", state | heads, where="drawn"), where="drawn")
    return network


def assert_same(found: jax.Array, wanted: np.ndarray) -> None:
    """Within 1e-5 of the largest value; `wanted` is NCHW."""
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1), atol=1e-5 * wanted.max())


def test_feature_maps_are_torchvisions(network):
    recorded = np.load(GOLDEN / "classifiers_named.npz")
    graph, weights = nnx.split(network)

    @jax.jit
    def both(weights, x):
        network = nnx.merge(graph, weights)
        return network(x), network.stages(normalize(x))

    (content, haze), stages = both(weights, 2 * recorded["x"].transpose(0, 2, 3, 1) - 1)
    assert content.shape == (1, 3, 4, VGG16.feature_channels)
    assert_same(content, recorded["vgg16.features.30"])
    np.testing.assert_array_equal(content, haze)
    for stage, number in zip(stages[2:], (15, 22, 29), strict=True):
        assert_same(stage[..., ::16], recorded[f"vgg16.features.{number}"])


def test_the_default_weights_need_no_download_and_tell_images_apart():
    network = load_vgg16()
    x = np.random.default_rng(0).uniform(-1, 1, (2, 32, 64, 3)).astype(np.float32)
    content, _ = network(jnp.asarray(x))
    assert content.shape == (2, 1, 2, 512)
    assert float(jnp.abs(content[0] - content[1]).max()) > 0.1


def test_a_converted_folder_gives_the_same_network(network, state, tmp_path):
    store.save(tmp_path, "vgg16", convert("vgg16", state, where="drawn"), {})
    loaded = load_vgg16(tmp_path, dtype=jnp.bfloat16)
    for name, tensor in store.tensors_of(network).items():
        np.testing.assert_array_equal(store.tensors_of(loaded)[name], tensor)
    assert loaded(jnp.zeros((1, 32, 32, 3)))[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(1, 32, 33, 3), (1, 40, 32, 3), (32, 32, 3), (1, 32, 32, 1)])
def test_sizes_that_do_not_fit_the_grid_are_refused(network, shape):
    with pytest.raises(ValueError, match="multiples of 32"):
        network(jnp.zeros(shape))


def test_another_vgg_is_refused(state):
    # VGG-16 with batch normalization numbers its layers otherwise.
    other = state | {"features.1.running_mean": np.zeros(64)}
    with pytest.raises(ValueError, match=r"vgg16_bn\.pth: .*features\.1\.running_mean has no rule"):
        convert("vgg16", other, where="vgg16_bn.pth")
