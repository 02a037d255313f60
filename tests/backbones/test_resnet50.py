"""ResNet-50 against torchvision."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert_weights.perceptual import convert
from difflid_jax.backbones.imagenet import normalize
from difflid_jax.backbones.resnet50 import ResNet50, load_resnet50
from difflid_jax.weights import store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """torchvision's state dict without the head."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{conv}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    conv_and_norm("conv1", "bn1", (64, 3, 7, 7))
    channels = 64
    for i, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**i
        for j in range(blocks):
            block = f"layer{i}.{j}"
            conv_and_norm(f"{block}.conv1", f"{block}.bn1", (width, channels, 1, 1))
            conv_and_norm(f"{block}.conv2", f"{block}.bn2", (width, width, 3, 3))
            conv_and_norm(f"{block}.conv3", f"{block}.bn3", (4 * width, width, 1, 1))
            if j == 0:
                names = f"{block}.downsample.0", f"{block}.downsample.1"
                conv_and_norm(*names, (4 * width, channels, 1, 1))
            channels = 4 * width
    return shapes


@pytest.fixture(scope="module")
def state(named_draw) -> dict[str, np.ndarray]:
    drawn = {name: named_draw(name, shape, gain=0.7) for name, shape in torch_shapes().items()}
    return drawn | {"fc.weight": np.zeros((1000, 2048)), "bn1.num_batches_tracked": np.zeros(())}


def test_feature_maps_are_torchvisions(state, tmp_path):
    store.save(tmp_path, "resnet50", convert("resnet50", state, where="drawn"), {})
    graph, weights = nnx.split(load_resnet50(tmp_path))
    recorded = np.load(GOLDEN / "classifiers_named.npz")

    @jax.jit
    def both(weights, x):
        network = nnx.merge(graph, weights)
        return network(x), network.layers(normalize(x))

    (content, haze), layers = both(weights, 2 * recorded["x"].transpose(0, 2, 3, 1) - 1)
    assert content.shape == (1, 3, 4, ResNet50.feature_channels)
    np.testing.assert_array_equal(content, haze)
    for found, name in ((content, "layer4"), (layers[2][..., ::16], "layer3")):
        wanted = recorded[f"resnet50.{name}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.max())


def test_computing_in_bfloat16_stays_close(state):
    networks = [nnx.eval_shape(lambda: ResNet50(dtype=d, rngs=nnx.Rngs(0))) for d in ("float32", "bfloat16")]
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)), jnp.float32)
    exact, low = (first_layer(network, state, x) for network in networks)
    assert low.dtype == jnp.bfloat16
    assert 0 < float(jnp.abs(low.astype(jnp.float32) - exact).max()) < 0.05 * float(exact.max())


def first_layer(network: ResNet50, state: dict[str, np.ndarray], x: jax.Array) -> jax.Array:
    store.fill(network, convert("resnet50", state, where="drawn"), where="drawn")
    graph, weights = nnx.split(network)
    return jax.jit(lambda weights, x: nnx.merge(graph, weights).layers(x)[0])(weights, x)


def test_sizes_that_do_not_fit_the_grid_are_refused():
    network = nnx.eval_shape(lambda: ResNet50(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="multiples of 32"):
        network(jnp.zeros((1, 32, 48, 3)))


def test_another_resnet_is_refused(state):
    other = dict(state) | {"layer1.0.conv2.weight": np.zeros((128, 128, 3, 3), np.float32)}
    with pytest.raises(ValueError, match=r"wide\.pth: .*layer1\.0\.conv2\.kernel \(expected"):
        convert("resnet50", other, where="wide.pth")
