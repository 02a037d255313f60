"""The one file format for weights: a folder holding `model.safetensors` that says what it is.

The metadata of the file name `format` (version of this contract), `kind` (unet, restorer, ...), the
`architecture` (JSON, enough to build the module again) and whatever else the writer adds, such as
`source_sha256`. `save` and `read` are the two sides of the file, `tensors_of` and `fill` the two sides of
an `nnx.Module`.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from difflid_jax.atomic import atomic_write

FORMAT = "1"
FILE = "model.safetensors"
ASSETS = Path(__file__).resolve().parents[1] / "assets"

# A header lists names, shapes and offsets: 1,000 tensors take about 100 kB.
_MAX_HEADER_BYTES = 8 << 20
_DTYPES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
}
_OWN_KEYS = ("format", "kind", "architecture")


@dataclass(frozen=True)
class Weights:
    """One weights file in memory: `tensors` by dotted name, and what the file says about itself."""

    tensors: dict[str, np.ndarray]
    architecture: dict[str, Any]
    metadata: dict[str, Any]
    path: Path
    sha256: str


def save(
    folder: str | os.PathLike,
    kind: str,
    tensors: Mapping[str, Any],
    architecture: dict[str, Any],
    *,
    dtype: Any = None,
    progress: bool = False,
    **metadata: Any,
) -> Path:
    """Write `folder/model.safetensors` in one piece (readers see the old file or the new one); return it.

    `tensors` are numpy or JAX arrays, converted and written one at a time, so that memory-mapped sources of
    any size pass through; floating ones are cast to `dtype` where it is given. `metadata` values may be
    anything JSON holds; `read` gives them back as they were.

    Raises ValueError for an empty mapping or a dtype that the format here does not know.
    """
    folder = Path(folder)
    if not tensors:
        raise ValueError(f"{folder / FILE}: expected at least one tensor to save, found none")
    for key in metadata:
        if key in _OWN_KEYS:
            raise ValueError(f"{folder / FILE}: the metadata key {key!r} is taken by the format itself")
    said = {"format": FORMAT, "kind": kind, "architecture": json.dumps(architecture, sort_keys=True)}
    said |= {key: _to_text(value) for key, value in metadata.items()}

    stored = {name: _stored_dtype(folder / FILE, name, value, dtype) for name, value in tensors.items()}
    # Wider elements first keeps every tensor aligned; names second makes equal weights equal files.
    order = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(said.items()))}
    end = 0
    for name in order:
        shape = [int(n) for n in np.shape(tensors[name])]
        start, end = end, end + math.prod(shape) * stored[name].itemsize
        header[name] = {"dtype": _DTYPES[stored[name]], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{folder / FILE}: names, shapes and metadata take {len(encoded):,} bytes, more than the "
            f"{_MAX_HEADER_BYTES:,} that a reader accepts; put less into the metadata"
        )

    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(folder / FILE) as temporary,
        temporary.open("xb") as file,
        tqdm(total=end, unit="B", unit_scale=True, desc="writing", disable=not progress) as bar,
    ):
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in order:
            array = np.ascontiguousarray(np.asarray(tensors[name]).astype(stored[name], copy=False))
            file.write(array.reshape(-1).view(np.uint8).data)
            bar.update(array.nbytes)
        file.flush()
        os.fsync(file.fileno())
    return folder / FILE


def read(name_or_folder: str | os.PathLike, kind: str) -> Weights:
    """The weights of a shipped name ("photos64"), a folder, or a `.safetensors` file.

    Raises FileNotFoundError where there is none (the message lists the shipped names), ValueError where the
    file is damaged, of another `kind` or of another format version.
    """
    path = resolve(name_or_folder)
    before = _identity(path)
    metadata = read_metadata(path)
    if metadata["kind"] != kind:
        raise ValueError(f"{path}: expected weights of kind {kind!r}, found {metadata['kind']!r}")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if _identity(path) != before:
        raise ValueError(f"{path}: was replaced while it was read; read it again")
    own = {key: metadata[key] for key in metadata if key not in _OWN_KEYS}
    return Weights(tensors, metadata["architecture"], own, path, sha256)


def read_metadata(name_or_folder: str | os.PathLike) -> dict[str, Any]:
    """What a weights file says about itself (`format`, `kind`, `architecture`, ...), without its tensors.

    The header is held against the size of the file, and bounded, before memory is taken for it.
    """
    path = resolve(name_or_folder)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
        raise _damaged(path, f"{size:,} bytes, whose first 8 claim a header of {length:,}")
    try:
        with safe_open(path, "np") as file:
            said = file.metadata() or {}
    except SafetensorError as error:
        raise _damaged(path, error) from error
    missing = [key for key in _OWN_KEYS if key not in said]
    if missing:
        raise ValueError(
            f"{path}: expected a weights file of this package, found a safetensors file without the metadata "
            f"{', '.join(missing)}; write it with one of the convert_weights programs or by training"
        )
    if said["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, found format {said['format']!r}; "
            "write it again, or use the version of difflid_jax that wrote it"
        )
    try:
        architecture = json.loads(said["architecture"])
    except (ValueError, RecursionError):
        architecture = None
    if not isinstance(architecture, dict):
        raise _damaged(path, "the architecture in its metadata is no JSON object")
    own = {key: said[key] for key in ("format", "kind")} | {"architecture": architecture}
    return {key: _from_text(value) for key, value in said.items() if key not in _OWN_KEYS} | own


def resolve(name_or_folder: str | os.PathLike) -> Path:
    """The `.safetensors` file that a shipped name, a folder or a file path stands for.

    A plain name means the shipped weights where such are; `./name` always means the folder.
    Raises FileNotFoundError, naming the shipped weights, where there is no such file.
    """
    text = os.fspath(name_or_folder)
    given = Path(text).expanduser()
    plain = bool(text) and text not in (".", "..") and not any(separator in text for separator in "/\\")
    if plain and (ASSETS / text / FILE).is_file():
        return ASSETS / text / FILE
    if given.suffix == ".safetensors" and given.is_file():
        return given
    if given.is_dir() and (given / FILE).is_file():
        return given / FILE
    found = "a folder without it" if given.is_dir() else "a file" if given.exists() else "nothing"
    shipped_names = ", ".join(shipped()) or "none"
    raise FileNotFoundError(
        f"{text or '(empty)'}: expected the name of shipped weights ({shipped_names}) or a folder that holds "
        f"{FILE}, found {found}; folders are written by convert_weights and by training"
    )


def shipped() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{FILE}"))


def tensors_of(module: nnx.Module) -> dict[str, np.ndarray]:
    """Parameters and batch statistics of `module` by dotted name (`input_blocks.3.0.in_conv.kernel`)."""
    return {name: np.asarray(variable.get_value()) for name, variable in _variables(module)}


def shapes_of(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the same tensors; works on an abstract module (`nnx.eval_shape`) too."""
    return {name: tuple(variable.get_value().shape) for name, variable in _variables(module)}


def fill(module: nnx.Module, tensors: Mapping[str, Any], *, where: str, dtype: Any = None) -> None:
    """Set every parameter and batch statistic of `module` from `tensors`, each exactly once.

    `module` may be abstract (made under `nnx.eval_shape`). Floating tensors become `dtype`, or else the
    dtype that the module declares. `where` is the file or folder named by the error: a ValueError that lists
    all missing and unexpected names, all shapes that differ, and integers in place of floats or vice versa.
    """
    variables = dict(_variables(module))
    wrong = mismatches({name: tuple(np.shape(t)) for name, t in tensors.items()}, shapes_of(module))
    kinds = [
        f"{name} (expected {variables[name].get_value().dtype}, found {tensor.dtype})"
        for name, tensor in tensors.items()
        if name in variables and _is_float(tensor) != _is_float(variables[name].get_value())
    ]
    if kinds:
        wrong = "; ".join([wrong] * bool(wrong) + [f"{len(kinds)} other type: {listed(kinds)}"])
    if wrong:
        raise ValueError(f"{where}: the weights do not fit the architecture: {wrong}")
    for name, variable in variables.items():
        declared = variable.get_value().dtype
        cast = dtype if dtype is not None and _is_float(variable.get_value()) else declared
        variable.set_value(jnp.array(tensors[name], dtype=cast))


def mismatches(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """One line on how `found` names and shapes differ from the `expected` ones; empty where they agree."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} (expected {expected[name]}, found {found[name]})"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("other shape", shapes)]
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def listed(names: Sequence[str], *, most: int = 100, separator: str = ", ") -> str:
    """Names for an error message: all of them within reason, for a hostile file may hold millions."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(name[:200] for name in names[:most]) + rest


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def _variables(module: nnx.Module) -> list[tuple[str, nnx.Variable]]:
    flat = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return [(".".join(str(step) for step in path), variable) for path, variable in flat]


def _stored_dtype(path: Path, name: str, value: Any, dtype: Any) -> np.dtype:
    found = np.dtype(value.dtype)
    stored = np.dtype(dtype) if dtype is not None and _is_float(value) else found
    if stored not in _DTYPES:
        known = ", ".join(str(known) for known in _DTYPES)
        raise ValueError(f"{path}: {name} has dtype {stored}; expected one of {known}")
    return stored


def _to_text(value: Any) -> str:
    """Strings as they are, all else as JSON; a string that reads as JSON is quoted, to come back a string."""
    if isinstance(value, str) and _from_text(value) is value:
        return value
    return json.dumps(value, sort_keys=True)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path}: expected a complete safetensors file, found a damaged one ({why}); fetch or write it again"
    )
