"""The weights file: what is written comes back, and what is wrong with a file is said in one line."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from difflid_jax.weights import store


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    return {
        "b.kernel": generator.standard_normal((3, 4, 5)).astype(np.float32),
        "a.mask": np.array([True, False, True]),
        "a.scalar": np.float32(2.5).reshape(()),
        "a.count": np.arange(3, dtype=np.int64),
        "half": generator.standard_normal(7).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
    }


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)])
        self.head = nnx.Linear(3, 2, rngs=rngs)


def test_tensors_and_metadata_come_back_as_they_were(tmp_path, tensors):
    metadata = {
        "step": 12,
        "scores": {"psnr": 20.5},
        "name": "haze",
        "digits": "123",
        "quoted": '"x"',
        "nothing": None,
        "truth": "true",
    }
    path = store.save(
        tmp_path / "new", "unet", tensors, {"image_size": 32, "channel_mult": [1, 2]}, **metadata
    )
    weights = store.read(tmp_path / "new", "unet")
    assert path == weights.path == tmp_path / "new" / "model.safetensors"
    assert weights.architecture == {"image_size": 32, "channel_mult": [1, 2]}
    assert weights.metadata == metadata
    assert weights.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert weights.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(weights.tensors[name], tensor)
    assert store.read_metadata(path) == metadata | {
        "format": store.FORMAT,
        "kind": "unet",
        "architecture": weights.architecture,
    }
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["model.safetensors"]


def test_the_file_is_plain_safetensors_for_others(tmp_path, tensors):
    path = store.save(tmp_path, "unet", tensors, {})
    loaded = safetensors.numpy.load_file(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_equal_weights_make_equal_files(tmp_path, tensors):
    one = store.save(tmp_path / "one", "unet", tensors, {"a": 1, "b": 2}, x=1, y=2)
    backwards = dict(reversed(list(tensors.items())))
    two = store.save(tmp_path / "two", "unet", backwards, {"b": 2, "a": 1}, y=2, x=1)
    assert one.read_bytes() == two.read_bytes()
    assert store.read(one, "unet").sha256 == store.read(two, "unet").sha256


def test_views_and_jax_arrays_are_written_in_c_order_and_cast(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    store.save(
        tmp_path,
        "unet",
        {"t": base.transpose(2, 0, 1), "j": jnp.arange(3.0), "n": np.arange(2)},
        {},
        dtype=ml_dtypes.bfloat16,
    )
    back = store.read(tmp_path, "unet").tensors
    np.testing.assert_array_equal(back["t"].astype(np.float32), base.transpose(2, 0, 1))
    assert back["t"].dtype == back["j"].dtype == ml_dtypes.bfloat16
    assert back["n"].dtype == np.int64


def test_a_failed_write_leaves_the_old_file(tmp_path, tensors):
    class Broken:
        shape, dtype = (2,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise OSError("disk gone")

    before = store.save(tmp_path, "unet", tensors, {}).read_bytes()
    with pytest.raises(OSError, match="disk gone"):
        store.save(tmp_path, "unet", tensors | {"zz": Broken()}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_save_refuses_what_a_reader_could_not_take(tmp_path, tensors):
    with pytest.raises(ValueError, match="complex64"):
        store.save(tmp_path, "unet", {"c": np.zeros(2, np.complex64)}, {})
    with pytest.raises(ValueError, match="at least one tensor"):
        store.save(tmp_path, "unet", {}, {})
    with pytest.raises(ValueError, match="'format' is reserved"):
        store.save(tmp_path, "unet", tensors, {}, format="2")
    with pytest.raises(ValueError, match="more than the"):
        store.save(tmp_path, "unet", tensors, {}, log="x" * (9 << 20))
    assert list(tmp_path.iterdir()) == []


def test_names_shipped_folders_and_files_are_found(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(store, "ASSETS", tmp_path / "assets")
    shipped = store.save(tmp_path / "assets" / "haze", "restorer", tensors, {})
    monkeypatch.chdir(tmp_path)
    own = store.save("haze", "restorer", tensors, {})
    assert store.shipped() == ["haze"]
    assert store.resolve("haze") == shipped
    assert store.resolve("./haze").resolve() == own.resolve()
    assert store.resolve(own.resolve()) == own.resolve()
    for unknown in ("dust", "", "..", str(tmp_path), str(tmp_path / "gone")):
        with pytest.raises(FileNotFoundError, match=r"shipped weights \(haze\)"):
            store.resolve(unknown)


def test_another_kind_or_format_is_refused(tmp_path, tensors):
    store.save(tmp_path, "unet", tensors, {})
    with pytest.raises(ValueError, match=r"safetensors: expected weights of kind 'restorer', found 'unet'"):
        store.read(tmp_path, "restorer")
    file = tmp_path / "model.safetensors"
    said = {"format": "9", "kind": "unet", "architecture": "{}"}
    safetensors.numpy.save_file({"a": np.zeros(2)}, file, said)
    with pytest.raises(ValueError, match="expected format 1, found format '9'"):
        store.read(tmp_path, "unet")
    safetensors.numpy.save_file({"a": np.zeros(2)}, file)
    with pytest.raises(ValueError, match="without the metadata format, kind, architecture"):
        store.read(tmp_path, "unet")
    said = {"format": "1", "kind": "unet", "architecture": "[]"}
    safetensors.numpy.save_file({"a": np.zeros(2)}, file, said)
    with pytest.raises(ValueError, match="architecture: expected a JSON object, found \\[\\]"):
        store.read(tmp_path, "unet")


def test_damaged_files_end_in_one_line_and_take_no_memory(tmp_path, tensors):
    file = store.save(tmp_path, "unet", tensors, {"a": 1}, note="x")
    whole = file.read_bytes()
    damaged = [whole[:n] for n in (0, 1, 7, 8, 9, 100, len(whole) - 1)]
    damaged += [b"\xff" * 8 + whole[8:], (1 << 40).to_bytes(8, "little") + whole[8:], whole + b"\0"]
    damaged += [whole.replace(b'"F32"', b'"C64"'), whole.replace(b'"F32"', b'"F99"')]
    damaged += [whole.replace(b"[3,4,5]", b"[3,4,9]"), b"[" * 1000]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors: expected a complete safetensors file"):
            store.read(tmp_path, "unet")


def test_mutated_files_end_in_an_error_or_in_weights(tmp_path, tensors):
    """One changed byte anywhere is a ValueError or leaves a readable file; never another exception."""
    file = store.save(tmp_path, "unet", tensors, {"a": 1}, note="x")
    whole = file.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        content[generator.integers(len(whole))] = generator.integers(256)
        file.write_bytes(content)
        try:
            store.read(tmp_path, "unet")
        except ValueError:
            refused += 1
    assert refused > 100


def test_module_tensors_round_trip_through_an_abstract_module(tmp_path):
    net = Net(nnx.Rngs(0))
    tensors = store.tensors_of(net)
    assert sorted(tensors) == [
        "blocks.0.bias",
        "blocks.0.kernel",
        "blocks.1.bias",
        "blocks.1.mean",
        "blocks.1.scale",
        "blocks.1.var",
        "head.bias",
        "head.kernel",
    ]
    store.save(tmp_path, "net", tensors, {})
    abstract = nnx.eval_shape(lambda: Net(nnx.Rngs(1)))
    assert store.shapes_of(abstract) == {name: t.shape for name, t in tensors.items()}
    store.fill(abstract, store.read(tmp_path, "net").tensors, where="here")
    for name, tensor in store.tensors_of(abstract).items():
        np.testing.assert_array_equal(tensor, tensors[name])
        assert isinstance(tensor, np.ndarray)
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(abstract.head(x), net.head(x))


def test_fill_casts_floating_tensors_and_copies_the_source():
    net = Net(nnx.Rngs(0))
    tensors = {name: np.full_like(t, 0.5) for name, t in store.tensors_of(net).items()}
    store.fill(net, tensors, where="here", dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))} == {np.dtype(jnp.bfloat16)}
    store.fill(net, tensors, where="here", dtype=jnp.float32)
    tensors["head.kernel"][:] = 9
    assert float(net.head.kernel[0, 0]) == 0.5


def test_integers_are_no_floats():
    net = Net(nnx.Rngs(0))
    tensors = store.tensors_of(net)
    tensors["head.bias"] = np.zeros(2, np.int64)
    with pytest.raises(ValueError, match=r"1 of another type: head.bias \(expected float32, found int64\)"):
        store.fill(net, tensors, where="here")


def test_a_file_replaced_while_it_is_read_is_not_mixed_up(tmp_path, tensors, monkeypatch):
    file = store.save(tmp_path, "unet", tensors, {})
    original = store.safe_open

    def replace_then_open(*arguments):
        monkeypatch.setattr(store, "safe_open", original)
        store.save(tmp_path, "unet", {"other": np.zeros(3)}, {})
        return original(*arguments)

    monkeypatch.setattr(store, "safe_open", replace_then_open)
    with pytest.raises(ValueError, match="was replaced while it was being read"):
        store.read(tmp_path, "unet")
    assert set(store.read(file, "unet").tensors) == {"other"}


def test_non_finite_weights_are_neither_written_nor_read(tmp_path, tensors):
    for dtype, bad in ((np.float32, np.nan), (np.float16, np.inf), (ml_dtypes.bfloat16, -np.inf)):
        broken = {**tensors, "b.kernel": np.array([1, bad], dtype)}
        with pytest.raises(ValueError, match=r"safetensors: b\.kernel holds NaN or infinity"):
            store.save(tmp_path, "unet", broken, {})
        assert list(tmp_path.iterdir()) == []
    # A number that overflows when it is cast is refused, too.
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        store.save(tmp_path, "unet", {"a": np.float32([1e6])}, {}, dtype=np.float16)
    said = {"format": store.FORMAT, "kind": "unet", "architecture": "{}"}
    safetensors.numpy.save_file({"a": np.float32([1, np.nan])}, tmp_path / "model.safetensors", said)
    with pytest.raises(ValueError, match=r"safetensors: a holds NaN or infinity"):
        store.read(tmp_path, "unet")


def test_fill_lists_everything_that_does_not_fit_in_one_error():
    net = Net(nnx.Rngs(0))
    tensors = store.tensors_of(net)
    del tensors["head.bias"], tensors["blocks.1.mean"]
    tensors["surplus"] = np.zeros(3)
    tensors["head.kernel"] = tensors["head.kernel"].T
    before = json.dumps({name: t.tolist() for name, t in store.tensors_of(net).items()})
    with pytest.raises(ValueError) as error:
        store.fill(net, tensors, where="weights/x")
    message = str(error.value)
    assert message == (
        "weights/x: the weights do not fit the architecture: 2 missing: blocks.1.mean, head.bias; "
        "1 unexpected: surplus; 1 of another shape: head.kernel (expected (3, 2), found (2, 3))"
    )
    assert json.dumps({name: t.tolist() for name, t in store.tensors_of(net).items()}) == before
