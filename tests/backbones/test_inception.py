"""Inception against pytorch-fid, and its resize against PyTorch."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from convert_weights.perceptual import convert
from difflid_jax.backbones.inception import CHANNELS, SIDE, InceptionNetwork, load_inception, resize_bilinear
from difflid_jax.weights import store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def torch_state(module: nnx.Module, draw, gain: float) -> dict[str, np.ndarray]:
    """pytorch-fid's state dict, drawn by name: its names are ours but for the last word."""
    words = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for name, shape in store.shapes_of(module).items():
        path, _, word = name.rpartition(".")
        theirs = f"{path}.{words.get(word, word)}"
        shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
        state[theirs] = draw(theirs, shape, gain=gain)
    return state


@pytest.fixture(scope="module")
def state(named_draw) -> dict[str, np.ndarray]:
    return torch_state(nnx.eval_shape(lambda: InceptionNetwork(rngs=nnx.Rngs(0))), named_draw, gain=0.9)


def test_pool3_is_that_of_pytorch_fid(state, tmp_path):
    unused = {"fc.weight": np.zeros((1008, 2048)), "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros(())}
    store.save(tmp_path, "inception", convert("inception", {**state, **unused}, where="drawn"), {})
    inception = load_inception(tmp_path)
    recorded = np.load(GOLDEN / "inception_named.npz")
    images = recorded["x"].transpose(0, 2, 3, 1)
    found = inception(images)
    assert found.shape == (1, CHANNELS)
    np.testing.assert_allclose(found, recorded["pool3"], atol=1e-6 * recorded["pool3"].max())
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]; found uint8 of shape \(1, 9, 9, 3\)"):
        inception(np.zeros((1, 9, 9, 3), np.uint8))


def test_every_tensor_of_inception_must_be_there(state):
    missing = {name: tensor for name, tensor in state.items() if name != "Mixed_7c.branch_pool.bn.bias"}
    with pytest.raises(ValueError, match=r"fid\.pth: .*1 missing: Mixed_7c\.branch_pool\.bn\.bias"):
        convert("inception", missing, where="fid.pth")


@pytest.mark.parametrize(("case", "size"), [("up", (37, 52)), ("down", (512, 401)), ("mixed", (120, 640))])
def test_resize_is_pytorchs_without_smoothing(case, size):
    recorded = np.load(GOLDEN / "resize_torch.npz")
    assert tuple(recorded[f"{case}_size"]) == size
    images = np.random.default_rng(size[0]).random((1, *size, 3)).astype(np.float32)
    found = np.asarray(resize_bilinear(images, SIDE, SIDE))
    # PyTorch computes positions in float32: a weight may differ by 1e-5 at the far end of 600 pixels.
    np.testing.assert_allclose(found[:, ::13, ::13], recorded[case], atol=3e-5)
    np.testing.assert_allclose(found[:, -1, ::13], recorded[f"{case}_edge"], atol=3e-5)
