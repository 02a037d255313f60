"""AOD-Net and DehazeNet against their definitions evaluated with scipy in the authors' weight layout."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from difflid_jax.baselines.aod_net import AODNet
from difflid_jax.baselines.dehazenet import DehazeNet, recover
from difflid_jax.weights import store


@pytest.fixture(scope="module")
def hazy() -> np.ndarray:
    return np.random.default_rng(0).random((23, 30, 3), np.float32)


def with_random_weights(module: nnx.Module) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    tensors = {
        name: (
            random.normal(size=shape) * (0.3 if name.endswith("bias") else 1 / np.sqrt(np.prod(shape[:3])))
        )
        for name, shape in store.shapes_of(module).items()
    }
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    store.fill(module, tensors, where="test")
    return tensors


def correlate(x, tensors, layer, *, mode, origin=0) -> np.ndarray:
    kernel = tensors[f"{layer}.kernel"].astype(np.float64)
    planes = [
        sum(
            ndimage.correlate(x[..., i], kernel[..., i, o], mode=mode, origin=origin)
            for i in range(x.shape[-1])
        )
        for o in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1) + tensors[f"{layer}.bias"]


def test_aod_net_is_the_authors_definition(hazy):
    network = nnx.eval_shape(lambda: AODNet(rngs=nnx.Rngs(0)))
    tensors = with_random_weights(network)

    def layer(name, *inputs):
        return np.maximum(correlate(np.concatenate(inputs, -1), tensors, name, mode="constant"), 0)

    x = hazy.astype(np.float64)
    x1 = layer("conv1", x)
    x2 = layer("conv2", x1)
    x3 = layer("conv3", x1, x2)
    x4 = layer("conv4", x2, x3)
    k = layer("conv5", x1, x2, x3, x4)
    assert (k > 0).mean() > 0.2
    result = jax.jit(network)(hazy[None])[0]
    np.testing.assert_allclose(result, np.maximum(k * x - k + 1, 0), rtol=0, atol=1e-5)


def test_dehazenet_is_the_authors_definition(hazy):
    network = nnx.eval_shape(lambda: DehazeNet(rngs=nnx.Rngs(0)))
    tensors = with_random_weights(network)
    # scipy's "reflect" repeats the border pixel, as Matlab's "symmetric" does.
    f = correlate(hazy.astype(np.float64) - 0.5, tensors, "features", mode="reflect")
    f = np.stack([f[..., 4 * i : 4 * i + 4].max(-1) for i in range(4)], axis=-1)
    f = np.concatenate([correlate(f, tensors, f"scale{n}", mode="reflect") for n in (3, 5, 7)], axis=-1)
    f = ndimage.maximum_filter(f, size=(7, 7, 1), mode="constant", cval=-np.inf)
    tensors["regression.kernel"] *= 6  # so that both ends of the bilateral ReLU are reached
    raw = correlate(f, tensors, "regression", mode="reflect", origin=-1)[..., 0]
    shift = np.float32(0.5 - raw.mean())
    tensors["regression.bias"] += shift
    store.fill(network, tensors, where="test")
    expected = np.clip(raw + shift, 0, 1)
    assert (expected == 0).mean() > 0.05 and (expected == 1).mean() > 0.05
    np.testing.assert_allclose(jax.jit(network)(hazy[None])[0], expected, rtol=0, atol=2e-5)


def test_the_published_sizes():
    for network, size in ((AODNet, 1761), (DehazeNet, 8305)):
        shapes = store.shapes_of(nnx.eval_shape(lambda: network(rngs=nnx.Rngs(0))))
        assert sum(np.prod(shape) for shape in shapes.values()) == size


def test_recovery_inverts_the_scattering_model():
    random = np.random.default_rng(2)
    scene = random.random((80, 100, 3)) * 0.8
    scene[:10] = 0.9
    transmission = np.full((80, 100), 0.6)
    transmission[:10] = 0.01
    hazy = scene * transmission[..., None] + 0.9 * (1 - transmission[..., None])
    flat = np.full((80, 100), 0.6)  # a constant map passes through the guided filter as it is
    flat[:1] = 0.59  # ... and the atmospheric light is read where it is least
    restored = recover(hazy, flat)
    assert restored.dtype == np.float32
    assert np.abs(restored - scene)[60:].max() < 0.01


def test_recovery_stays_finite_where_nothing_is_transmitted():
    restored = recover(np.random.default_rng(3).random((9, 9, 3)), np.zeros((9, 9)))
    assert np.isfinite(restored).all() and restored.min() >= 0 and restored.max() <= 1
