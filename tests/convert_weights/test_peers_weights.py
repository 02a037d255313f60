"""The authors' files of the baselines become our weights, and nothing else does."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from convert_weights.peers import PEERS, convert
from difflid_jax.cli import one_line

KERNELS = {
    "conv1": (3, 3, 1, 1),
    "conv2": (3, 3, 3, 3),
    "conv3": (3, 6, 5, 5),
    "conv4": (3, 6, 7, 7),
    "conv5": (3, 12, 3, 3),
}
PATCHES = {
    "conv1": (3, 25, 16),
    "conv3x3": (4, 9, 16),
    "conv5x5": (4, 25, 16),
    "conv7x7": (4, 49, 16),
    "ip": (48, 36),
}


@pytest.fixture
def aod_net() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays = {f"{name}_w": random.normal(size=shape).astype(np.float32) for name, shape in KERNELS.items()}
    return arrays | {f"{name}_b": random.normal(size=3).astype(np.float32) for name in KERNELS}


@pytest.fixture
def dehazenet() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    arrays = {
        f"weights_{name}": random.normal(size=shape).astype(np.float32) for name, shape in PATCHES.items()
    }
    for name, shape in PATCHES.items():
        arrays[f"biases_{name}"] = random.normal(size=(*shape[2:], 1) if shape[2:] else (1, 1)).astype(
            np.float32
        )
    return arrays


def field(number: int, payload: bytes | int) -> bytes:
    """One protobuf field, as Caffe writes it."""

    def varint(value: int) -> bytes:
        head = b""
        while value > 127:
            head, value = head + bytes([value & 127 | 128]), value >> 7
        return head + bytes([value])

    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def caffemodel(arrays: dict[str, np.ndarray]) -> bytes:
    layers = field(1, b"net") + field(100, field(1, b"relu1") + field(2, b"ReLU") + field(10, 1))
    for name in KERNELS:
        layer = field(1, name.encode()) + field(2, b"Convolution")
        for blob in (arrays[f"{name}_w"], arrays[f"{name}_b"]):
            shape = b"".join(bytes([n]) for n in blob.shape)
            layer += field(7, field(5, blob.tobytes()) + field(7, field(1, shape)))
        layers += field(100, layer)
    return layers


def test_caffemodel_and_npz_of_the_same_arrays_convert_alike(tmp_path, aod_net):
    np.savez(tmp_path / "a.npz", **aod_net)
    (tmp_path / "a.caffemodel").write_bytes(caffemodel(aod_net))
    tensors = convert("aod_net", [tmp_path / "a.npz"])
    others = convert("aod_net", [tmp_path / "a.caffemodel"])
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name])
    np.testing.assert_array_equal(tensors["conv3.kernel"][4, 2, 5, 1], aod_net["conv3_w"][1, 5, 4, 2])


def test_mat_kernels_run_column_by_column(tmp_path, dehazenet):
    savemat(tmp_path / "d.mat", dehazenet)
    tensors = convert("dehazenet", [tmp_path / "d.mat"])
    row, column = 3, 1
    np.testing.assert_array_equal(
        tensors["features.kernel"][row, column, 2], dehazenet["weights_conv1"][2, row + 5 * column]
    )
    np.testing.assert_array_equal(
        tensors["regression.kernel"][5, 2, :, 0], dehazenet["weights_ip"][:, 5 + 6 * 2]
    )


def test_files_that_are_not_these_networks_are_refused_in_one_line(tmp_path, aod_net, dehazenet):
    whole, packed = caffemodel(aod_net), io.BytesIO()
    np.savez(packed, **aod_net)
    savemat(tmp_path / "whole.mat", dehazenet)
    mat = (tmp_path / "whole.mat").read_bytes()
    files = {
        "cut.caffemodel": whole[:-100],
        "cut.npz": packed.getvalue()[:-100],
        "cut.mat": mat[: len(mat) // 2],
        "text.mat": b"not a matrix" * 40,
        "text.npz": b"not an archive",
        "empty.caffemodel": b"",
        "endless.caffemodel": b"\xff" * 50,
        "large.mat": b"\0" * ((1 << 20) + 1),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "missing.npz", **{k: v for k, v in aod_net.items() if k != "conv4_b"})
    np.savez(tmp_path / "more.npz", **aod_net, conv6_w=np.zeros(3, np.float32))
    np.savez(tmp_path / "nan.npz", **aod_net | {"conv2_b": np.full(3, np.nan, np.float32)})
    np.savez(tmp_path / "double.npz", **{k: v.astype(np.float64) for k, v in aod_net.items()})
    np.savez(tmp_path / "objects.npz", **aod_net | {"conv2_b": np.array([{}, {}, {}], dtype=object)})
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("conv1_w.npy", header)
    for name, method in (("unknown.npz", 97), ("lzma.npz", zipfile.ZIP_LZMA)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("conv1_w.npy", header)
        packed = bytearray((tmp_path / name).read_bytes())
        packed[8], packed[packed.index(b"PK\1\2") + 10] = method, method
        (tmp_path / name).write_bytes(packed)
    savemat(tmp_path / "bomb.mat", {"x": np.zeros(1 << 22, np.uint8)}, do_compression=True)
    (tmp_path / "model.pth").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.mat":
            with pytest.raises(ValueError) as refusal:
                convert("dehazenet" if path.suffix == ".mat" else "aod_net", [path])
            assert str(path) in one_line(refusal.value), path.name
    with pytest.raises(ValueError, match=r"bomb.mat: .*more than 1,048,576 bytes unpacked"):
        convert("dehazenet", [tmp_path / "bomb.mat"])
    with pytest.raises(ValueError, match=r"1 missing: conv4_b"):
        convert("aod_net", [tmp_path / "missing.npz"])
    with pytest.raises(ValueError, match=r"1 unexpected: conv6_w"):
        convert("aod_net", [tmp_path / "more.npz"])


def test_checkpoints_of_uretinex_net_must_be_those_of_its_release():
    """Each of its four files holds several models; γ, λ and the rounds are constants of the network here."""
    options = {"round": 3, "gamma": 0.1, "Roffset": 0.05, "lamda": 0.5, "Loffset": 0.05, "concat_L": True}
    one = {"w": np.zeros(1, np.float32)}
    models = {"model_R": one, "model_L": one, "model_A": {"module.w": one["w"]}}
    files, names = [{"state_dict": models} for _ in range(4)], ["low", "high", "unfolding", "adjust"]
    files[2] = files[2] | {"opts": options}
    merged = PEERS["uretinex_net"].merge(files, names)
    assert sorted(merged) == ["a.w", "high.w", "l.w", "low.w", "r.w"]
    other = files[2] | {"opts": options | {"gamma": 0.2}}
    with pytest.raises(ValueError, match=r"unfolding: opts\.gamma: expected 0\.1, found 0\.2"):
        PEERS["uretinex_net"].merge([*files[:2], other, files[3]], names)
    with pytest.raises(ValueError, match=r"high: expected a checkpoint of URetinex-Net with model_R"):
        PEERS["uretinex_net"].merge([files[0], {"state_dict": {}}, *files[2:]], names)
    with pytest.raises(ValueError, match=r"retinexnet takes Decom/9200\.tar, Relight.*found 1 files"):
        convert("retinexnet", [Path("9200.tar")])
