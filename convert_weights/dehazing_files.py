"""The authors' files of AOD-Net (Caffe, or the same arrays as .npz) and DehazeNet (Matlab)."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from difflid_jax.weights import store

_MAX_BYTES = 1 << 20  # the authors' files have 9 kB and 32 kB
_COMPRESSED = 15  # the type of a compressed element in a .mat

_AOD_NET = {f"conv{i}": shape for i, shape in enumerate(
    [(3, 3, 1, 1), (3, 3, 3, 3), (3, 6, 5, 5), (3, 6, 7, 7), (3, 12, 3, 3)], start=1)}  # fmt: skip
# Their name → (our name, shape: inputs, height × width column by column, outputs)
_DEHAZENET = {
    "conv1": ("features", (3, 25, 16)),
    "conv3x3": ("scale3", (4, 9, 16)),
    "conv5x5": ("scale5", (4, 25, 16)),
    "conv7x7": ("scale7", (4, 49, 16)),
    "ip": ("regression", (48, 36)),
}


def read(network: str, source: Path) -> dict[str, np.ndarray]:
    """Our tensors of 'aod_net' (.caffemodel, .npz) or 'dehazenet' (.mat) by name; kernels are HWIO.

    Raises ValueError, naming the file, if it is too large, damaged, of another format or another network.
    """
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = (
        {".caffemodel": _read_caffemodel, ".npz": _read_npz} if network == "aod_net" else {".mat": _read_mat}
    )
    if source.suffix not in readers:
        raise ValueError(f"{source}: expected a file that ends in {' or '.join(readers)}")
    if (size := source.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{source}: {size:,} bytes; the authors' files have less than {_MAX_BYTES:,}")
    theirs = readers[source.suffix](source)
    expected = _aod_net_shapes() if network == "aod_net" else _dehazenet_shapes()
    wrong = store.mismatches({name: array.shape for name, array in theirs.items()}, expected)
    if wrong:
        raise ValueError(f"{source}: these are not the weights of {network}: {wrong}")
    for name, array in theirs.items():
        if array.dtype != np.float32:
            raise ValueError(f"{source}: {name}: expected float32, found {array.dtype}")
        store.require_finite(name, array, where=source)
    return _ours(network, theirs)


def _aod_net_shapes() -> dict[str, tuple[int, ...]]:
    kernels = {f"{name}_w": shape for name, shape in _AOD_NET.items()}
    return kernels | {f"{name}_b": shape[:1] for name, shape in _AOD_NET.items()}


def _dehazenet_shapes() -> dict[str, tuple[int, ...]]:
    kernels = {f"weights_{name}": shape for name, (_, shape) in _DEHAZENET.items()}
    return kernels | {
        f"biases_{name}": (shape[2] if len(shape) > 2 else 1, 1) for name, (_, shape) in _DEHAZENET.items()
    }


def _ours(network: str, theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {}
    if network == "aod_net":
        for name in _AOD_NET:
            tensors[f"{name}.kernel"] = theirs[f"{name}_w"].transpose(2, 3, 1, 0)
            tensors[f"{name}.bias"] = theirs[f"{name}_b"]
        return tensors
    for name, (ours, shape) in _DEHAZENET.items():
        side = round(shape[1] ** 0.5)
        kernel = theirs[f"weights_{name}"].reshape(shape[0], side, side, -1)
        tensors[f"{ours}.kernel"] = kernel.transpose(2, 1, 0, 3)
        tensors[f"{ours}.bias"] = theirs[f"biases_{name}"].reshape(-1)
    return tensors


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > _MAX_BYTES:
            raise ValueError(f"{total:,} bytes unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    except Exception as error:  # each of zip's codings raises its own
        raise _damaged(path, error) from error


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        _check_unpacked(path.read_bytes())
        variables = loadmat(path)
    except Exception as error:  # what it raises on a damaged file is not documented
        raise _damaged(path, error) from error
    return {name: np.asarray(value) for name, value in variables.items() if not name.startswith("__")}


def _check_unpacked(data: bytes) -> None:
    """Raise ValueError if the compressed elements of a .mat become more than `_MAX_BYTES`."""
    form = ">LL" if data[126:128] == b"MI" else "<LL"
    at, left = 128, _MAX_BYTES
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(form, data, at)
        at += 8
        if kind == _COMPRESSED:
            left -= len(zlib.decompressobj().decompress(data[at : at + size], left + 1))
            if left < 0:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes unpacked")
        at += size


def _read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    """The blobs of every layer: NetParameter.layer (field 100): name (1), blobs (7): shape (7), data (5)."""
    arrays = {}
    try:
        for layer in _messages(path.read_bytes(), 100):
            name = b"".join(_messages(layer, 1)).decode()
            for suffix, blob in zip(("w", "b"), _messages(layer, 7), strict=False):
                shape = tuple(_varints(b"".join(b"".join(_messages(s, 1)) for s in _messages(blob, 7))))
                arrays[f"{name}_{suffix}"] = np.frombuffer(b"".join(_messages(blob, 5)), "<f4").reshape(shape)
    except (ValueError, IndexError, struct.error) as error:
        raise _damaged(path, error) from error
    if not arrays:
        raise _damaged(path, "no layer with weights in it")
    return arrays


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    """The length-delimited fields numbered `wanted` of a protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
            continue
        length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, len(data) + 1), at)
        if at + length > len(data):
            raise ValueError("a field reaches past the end")
        if kind == 2 and key >> 3 == wanted:
            yield data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + shift // 7 + 1
    raise ValueError("a number of more than ten bytes")


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path}: expected a {path.suffix} file, found a damaged one ({why}); download it again"
    )
