"""Reads PyTorch's `.pt`, `.pth` and `.tar` files, and plain pickles of arrays, without PyTorch.

Such a file holds a pickle that describes the tensors, and the bytes of their storages. Since PyTorch 1.6 they
are entries of a zip archive (`<name>/data.pkl`, `<name>/data/<key>`); before, they follow each other in a
single file. The pickle is never executed (`pickle_reader`). Storages are memory-mapped, and every size in the
file is checked against the file's length before an array is made.
"""

import functools
import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from difflid_jax.weights.archive import Archive
from difflid_jax.weights.pickle_reader import Function, Unfinished, read_pickle

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
_MAX_PICKLE_BYTES = 64 << 20
_MAX_ARRAY_FILE_BYTES = 1 << 30
_MAX_DIMENSIONS = 32

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_NUMPY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


def read_torch(path: str | os.PathLike) -> Any:
    """The object that `torch.save` wrote to `path`: plain containers and numbers, NumPy arrays for tensors.

    The arrays are read-only views of the memory-mapped file, bfloat16 as `ml_dtypes.bfloat16`; an
    `argparse.Namespace` becomes a dict. Raises ValueError, naming the file, if it is damaged, refers to other
    Python objects or was not written by PyTorch; nothing in it is executed.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(512)
        if not start.startswith((b"PK\x03\x04", _LEGACY_MAGIC)):
            raise ValueError(
                f"{path}: expected a file written by torch.save, found {_what_it_is(start, size)}"
            )
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return _read_zip(content, file) if start.startswith(b"PK") else _read_legacy(content)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not a readable PyTorch file: {error}") from error


def read_pickle_arrays(path: str | os.PathLike) -> Any:
    """The object that `pickle.dump` wrote to `path`: plain containers with NumPy and JAX arrays.

    The arrays are read-only NumPy arrays. Raises ValueError, naming the file, for anything else; nothing is
    executed.
    """
    path = Path(path)
    size = path.stat().st_size
    if not 0 < size <= _MAX_ARRAY_FILE_BYTES:
        raise ValueError(f"{path}: expected a pickle of 1 to {_MAX_ARRAY_FILE_BYTES:,} bytes, found {size:,}")
    try:
        return read_pickle(path.read_bytes(), _array_names())[0]
    except ValueError as error:
        raise ValueError(f"{path}: not a readable pickle of arrays: {error}") from error


@dataclass(frozen=True)
class _Storage:
    """The bytes that tensors are views of."""

    dtype: np.dtype
    content: memoryview


def _read_zip(content: mmap.mmap, file: BinaryIO) -> Any:
    archive = Archive(content, file)
    roots = [name.removesuffix("data.pkl") for name in archive.names if f"/{name}".endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"the zip archive holds {len(roots)} files data.pkl, expected one")
    root = roots[0]
    if root + "constants.pkl" in archive.names:
        raise ValueError("it is a TorchScript archive; save the state dict of the model instead")
    if root + "byteorder" in archive.names and archive.content_of(root + "byteorder") != b"little":
        raise ValueError("its byte order is not 'little'")
    pickled = archive.content_of(root + "data.pkl")
    if len(pickled) > _MAX_PICKLE_BYTES:
        raise ValueError(f"its pickle takes {len(pickled):,} bytes, more than {_MAX_PICKLE_BYTES:,}")
    storages: dict[str, memoryview] = {}

    def storage(identity: Any) -> _Storage:
        dtype, key, count = _storage_claim(identity)
        if key not in storages:
            storages[key] = archive.content_of(f"{root}data/{key}")
        if len(storages[key]) != count * dtype.itemsize:
            raise ValueError(
                f"storage {key[:50]} claims {count * dtype.itemsize:,} bytes, found {len(storages[key]):,}"
            )
        return _Storage(dtype, storages[key])

    return read_pickle(pickled, _torch_names(), storage)[0]


def _read_legacy(content: mmap.mmap) -> Any:
    head = memoryview(content)[:_MAX_PICKLE_BYTES]
    system, after_system = read_pickle(head, {}, start=len(_LEGACY_MAGIC))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its byte order is not 'little'")

    # The position of a storage is known only after the pickle that uses it, so the pickle is read twice.
    claims: dict[str, tuple[np.dtype, int]] = {}

    def note(identity: Any) -> None:
        dtype, key, count = _storage_claim(identity)
        if claims.setdefault(key, (dtype, count)) != (dtype, count):
            raise ValueError(f"storage {key[:50]} has two types or sizes")

    unbuilt = {name: Function(name, lambda *_: None) for name in _torch_names() if "_rebuild_" in name}
    _, after_tensors = read_pickle(head, _torch_names() | unbuilt, note, after_system)
    keys, at = read_pickle(head, {}, start=after_tensors)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    if sorted(keys) != sorted(claims):
        raise ValueError("its storages are not those that its tensors use")
    storages = {}
    for key in keys:
        dtype, count = claims[key]
        end = at + 8 + count * dtype.itemsize
        if end > len(content):
            raise ValueError(
                f"storage {key[:50]} reaches {end - len(content):,} bytes past the end of the file; "
                "it is truncated or damaged: download it again"
            )
        if struct.unpack_from("<q", content, at)[0] != count:
            raise ValueError(f"storage {key[:50]} does not have the size that its tensors claim")
        storages[key] = _Storage(dtype, memoryview(content)[at + 8 : end])
        at = end
    return read_pickle(head, _torch_names(), lambda identity: storages[identity[2]], after_system)[0]


def _storage_claim(identity: Any) -> tuple[np.dtype, str, int]:
    """(dtype, key, number of elements) of a persistent id ('storage', type, key, device, elements, …)."""
    match identity:
        case ("storage", np.dtype() as dtype, str(key), str(), int(count)) if count >= 0:
            return dtype, key, count
        case ("storage", np.dtype() as dtype, str(key), str(), int(count), None) if count >= 0:
            return dtype, key, count
        case ("module", *_):
            raise ValueError("it holds a whole module with its code; save the model's state dict instead")
    raise ValueError("it describes a storage in an unknown way")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    if not isinstance(storage, _Storage):
        raise TypeError
    size = storage.dtype.itemsize
    there = len(storage.content) // size
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor has a negative or an impossible size")
    used = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and (used > there or math.prod(shape) > there):
        claimed = max(used, math.prod(shape))
        raise ValueError(f"a tensor claims {claimed:,} elements of a storage of {there:,}")
    if not math.prod(shape):
        return np.zeros(shape, storage.dtype)
    steps = tuple(stride * size for stride in strides)
    return np.ndarray(shape, storage.dtype, storage.content, offset * size, steps)


def _dtype(code: Any, *_: Any) -> np.dtype:
    if isinstance(code, np.dtype):
        return code
    if not isinstance(code, str) or code not in _NUMPY_CODES:
        raise ValueError("it holds arrays of an unsupported dtype")
    return np.dtype(code)


def _array(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(content, bytes) or not isinstance(dtype, np.dtype):
        raise TypeError
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError("an array has a negative or an impossible size")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} and type {dtype} comes with {len(content):,} bytes")
    return np.ndarray(shape, dtype, content, order=order)


def _unfinished_array(*_: Any) -> Unfinished:
    def finish(state: Any) -> np.ndarray:
        _version, shape, dtype, fortran, content = state
        return _array(content, dtype, shape, "F" if fortran else "C")

    return Unfinished(finish)


def _namespace() -> Unfinished:
    """An `argparse.Namespace`, as training scripts save alongside weights: a dict of its attributes."""

    def finish(state: Any) -> dict:
        if not isinstance(state, dict):
            raise TypeError
        return state

    return Unfinished(finish)


def _functions(table: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    return {name: Function(name.replace(" ", "."), run) for name, run in table.items()}


def _ordered_dict(pairs: Any = ()) -> dict:
    if not isinstance(pairs, (list, tuple)) or not all(type(pair[0]) in (str, int) for pair in pairs):
        raise TypeError
    return dict(pairs)


def _size(sizes: Any) -> tuple:
    if not isinstance(sizes, tuple):
        raise TypeError
    return sizes


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise TypeError
    return kind if index is None else f"{kind}:{index}"


def _array_names() -> dict[str, Any]:
    """The table of names for a pickle of arrays."""

    # Cached, so that a pickle cannot have one long string encoded again and again.
    @functools.cache
    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise TypeError
        return text.encode(encoding)

    def scalar(dtype: Any, content: Any) -> Any:
        return _array(content, dtype, (), "C")[()]

    functions = {
        "collections OrderedDict": _ordered_dict,
        "_codecs encode": encode,
        "__builtin__ bytes": lambda: b"",  # empty bytes in protocol 2
        "numpy dtype": _dtype,
        "jax._src.array _reconstruct_array": lambda _f, _a, state, _v: _unfinished_array().finish(state),
    }
    for core in ("numpy.core", "numpy._core"):
        functions[f"{core}.multiarray _reconstruct"] = _unfinished_array
        functions[f"{core}.multiarray scalar"] = scalar
        functions[f"{core}.numeric _frombuffer"] = _array
    return _functions(functions) | {"numpy ndarray": None, "ml_dtypes bfloat16": np.dtype(ml_dtypes.bfloat16)}


def _torch_names() -> dict[str, Any]:
    """The table of names for PyTorch's pickles."""
    functions = {
        "torch._utils _rebuild_tensor": _tensor,
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
        "torch Size": _size,
        "torch device": _device,
        "argparse Namespace": _namespace,
    }
    storages = {f"torch {name}": np.dtype(dtype) for name, dtype in _STORAGES.items()}
    return _array_names() | _functions(functions) | storages


def _what_it_is(start: bytes, size: int) -> str:
    if not size:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file itself; fetch it with git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "an HTML or XML page, as a failed download leaves; remove it and download it again"
    if b"ustar" in start[256:270] or start.startswith(b"\x1f\x8b"):
        return "a tar or gzip archive; unpack it first"
    if start[8:9] == b"{":
        return "what looks like a safetensors file"
    if start[:1] == b"\x80":
        return "a pickle of another kind (a whole object, or arrays without PyTorch)"
    return f"{size:,} bytes that begin with {start[:8]!r}"
