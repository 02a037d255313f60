"""Weights of AOD-Net and DehazeNet, from their authors' files.

    python -m convert_weights.peers --source AOD_Net.caffemodel --output weights/aod_net
    python -m convert_weights.peers --source dehaze.mat --output weights/dehazenet

AOD-Net: `AOD_Net.caffemodel` of the repository Boyiliee/AOD-Net, or the same arrays as an .npz
(`conv1_w`, `conv1_b`, ..., kernels as (out,in,height,width)). DehazeNet: `dehaze.mat` of
caibolun/DehazeNet. Both take RGB, as this package does.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from difflid_jax.cli import UsageError, refuse_existing, run
from difflid_jax.weights import store

_MAX_BYTES = 1 << 20  # the authors' files have 9 kB and 32 kB

_AOD_NET = {f"conv{i}": shape for i, shape in enumerate(
    [(3, 3, 1, 1), (3, 3, 3, 3), (3, 6, 5, 5), (3, 6, 7, 7), (3, 12, 3, 3)], start=1)}  # fmt: skip
# Theirs: (inputs, height × width column by column, outputs).
_DEHAZENET = {
    "conv1": ("features", (3, 25, 16)),
    "conv3x3": ("scale3", (4, 9, 16)),
    "conv5x5": ("scale5", (4, 25, 16)),
    "conv7x7": ("scale7", (4, 49, 16)),
    "ip": ("regression", (48, 36)),
}


def convert(source: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read an authors' file: the kind ('aod_net' or 'dehazenet') and our tensors by name, kernels HWIO.

    Raises: ValueError naming the file where it is too large, damaged, of another kind or not these networks;
    OSError where it cannot be read.
    """
    readers: dict[str, tuple[str, Callable]] = {
        ".caffemodel": ("aod_net", _read_caffemodel),
        ".npz": ("aod_net", _read_npz),
        ".mat": ("dehazenet", _read_mat),
    }
    if source.suffix not in readers:
        raise ValueError(
            f"{source}: expected a file that ends in {', '.join(readers)}, found {source.suffix!r}"
        )
    if (size := source.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{source}: {size:,} bytes; the authors' files have less than {_MAX_BYTES:,}")
    kind, reader = readers[source.suffix]
    theirs = reader(source)
    expected = _aod_net_shapes() if kind == "aod_net" else _dehazenet_shapes()
    wrong = store.mismatches({name: array.shape for name, array in theirs.items()}, expected)
    if wrong:
        raise ValueError(f"{source}: these are not the weights of {kind}: {wrong}")
    for name, array in theirs.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(f"{source}: {name} must be finite float32, found {array.dtype} or NaN, infinity")
    return kind, _ours(kind, theirs)


def _aod_net_shapes() -> dict[str, tuple[int, ...]]:
    kernels = {f"{name}_w": shape for name, shape in _AOD_NET.items()}
    return kernels | {f"{name}_b": shape[:1] for name, shape in _AOD_NET.items()}


def _dehazenet_shapes() -> dict[str, tuple[int, ...]]:
    kernels = {f"weights_{name}": shape for name, (_, shape) in _DEHAZENET.items()}
    return kernels | {
        f"biases_{name}": (shape[2] if len(shape) > 2 else 1, 1) for name, (_, shape) in _DEHAZENET.items()
    }


def _ours(kind: str, theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {}
    if kind == "aod_net":
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
    except (ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, error) from error


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        variables = loadmat(path)
    except Exception as error:  # what it raises on a damaged file is not documented
        raise _damaged(path, error) from error
    return {name: np.asarray(value) for name, value in variables.items() if not name.startswith("__")}


def _read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    """The blobs of every layer: NetParameter.layer (field 100): name (1), blobs (7); shape (7), data (5)."""
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


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1 or not flags.FLAGS.source or not flags.FLAGS.output:
        raise UsageError("give --source FILE and --output FOLDER, and nothing else")
    refuse_existing(Path(flags.FLAGS.output) / store.FILE, flags.FLAGS.overwrite)
    source = Path(flags.FLAGS.source)
    kind, tensors = convert(source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    path = store.save(flags.FLAGS.output, kind, tensors, {}, source=source.name, source_sha256=sha256)
    parameters = sum(array.size for array in tensors.values())
    print(f"{path}: {kind}, {parameters:,} parameters, from {source.name} (sha256 {sha256[:16]}…)")


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "the authors' file: .caffemodel or .npz (AOD-Net), .mat (DehazeNet)")
    flags.DEFINE_string("output", None, "folder for the converted weights")
    flags.DEFINE_bool("overwrite", False, "replace weights that are there")
    run(main)
