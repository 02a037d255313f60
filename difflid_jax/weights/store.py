"""The file format of weights: a folder with one `model.safetensors` that describes itself.

Its metadata hold `format` (the version of this contract), `kind` (unet, restorer, ...), `architecture` (JSON,
enough to rebuild the module) and what the writer adds, such as `source_sha256`. `save` and `read` are the two
sides of the file; `tensors_of` and `fill` are the two sides of an `nnx.Module`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from difflid_jax.atomic import atomic_write, sha256_of
from difflid_jax.weights import header
from difflid_jax.weights.schema import JsonSpec, brief, check_metadata, listed

if TYPE_CHECKING:  # reading and writing files needs no JAX
    from flax import nnx

FORMAT = "1"
FILE = "model.safetensors"
ASSETS = Path(__file__).resolve().parents[1] / "assets"

_OWN_KEYS = ("format", "kind", "architecture")


Spec = TypeVar("Spec", bound=JsonSpec)


@dataclass(frozen=True)
class Weights:
    """A weights file in memory: `tensors` by dotted name, all finite, and the file's metadata."""

    tensors: dict[str, np.ndarray]
    architecture: dict[str, Any]
    metadata: dict[str, Any]
    path: Path
    sha256: str

    def spec(self, cls: type[Spec]) -> Spec:
        """The architecture as a `cls`. Raises ValueError, naming the file and the field, if it is not one."""
        try:
            return cls.from_dict(self.architecture)
        except ValueError as error:
            raise ValueError(f"{self.path}: architecture: {error}") from error


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
    """Write `folder/model.safetensors` atomically (readers see the old file or the new one); return its path.

    tensors: NumPy or JAX arrays; each is converted and written on its own, so memory-mapped sources of any
    size pass through. dtype: cast floating tensors to it. metadata: JSON values, which `read` returns as they
    were.

    Raises ValueError for an empty mapping, an unsupported dtype, a non-finite number, or metadata that `read`
    would refuse.
    """
    folder = Path(folder)
    if not tensors:
        raise ValueError(f"{folder / FILE}: expected at least one tensor to save, found none")
    for key in metadata:
        if key in _OWN_KEYS:
            raise ValueError(f"{folder / FILE}: the metadata key {key!r} is reserved by the format")
    _check_metadata(folder / FILE, metadata)
    texts = {"format": FORMAT, "kind": kind, "architecture": json.dumps(architecture, sort_keys=True)}
    texts |= {key: header.to_text(value) for key, value in metadata.items()}

    stored = {name: _stored_dtype(folder / FILE, name, value, dtype) for name, value in tensors.items()}
    shapes = {name: tuple(int(n) for n in np.shape(value)) for name, value in tensors.items()}
    encoded, order, size = header.encode(folder / FILE, shapes, stored, texts)

    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(folder / FILE) as temporary,
        temporary.open("xb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc="writing", disable=not progress) as bar,
    ):
        file.write(encoded)
        for name in order:
            with np.errstate(over="ignore"):  # becomes infinity, refused in the next line
                array = np.ascontiguousarray(np.asarray(tensors[name]).astype(stored[name], copy=False))
            require_finite(name, array, where=folder / FILE)
            file.write(array.reshape(-1).view(np.uint8).data)
            bar.update(array.nbytes)
        file.flush()
        os.fsync(file.fileno())
    return folder / FILE


def read(name_or_folder: str | os.PathLike, kind: str) -> Weights:
    """The weights of a shipped name ("photos64"), a folder, or a `.safetensors` file.

    Raises FileNotFoundError if there is no such file (the message lists the shipped names) and ValueError if
    it is damaged, of another `kind` or format version, or holds metadata out of range or non-finite numbers.
    """
    path = resolve(name_or_folder)
    before = _identity(path)
    metadata = read_metadata(path)
    if metadata["kind"] != kind:
        raise ValueError(f"{path}: expected weights of kind {kind!r}, found {metadata['kind']!r}")
    sha256 = sha256_of(path)
    try:
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, AttributeError) as error:
        raise header.damaged(path, error) from error
    if _identity(path) != before:
        raise ValueError(f"{path}: the file was replaced while it was being read; read it again")
    for name, tensor in tensors.items():
        require_finite(name, tensor, where=path)
    own = {key: metadata[key] for key in metadata if key not in _OWN_KEYS}
    return Weights(tensors, metadata["architecture"], own, path, sha256)


def read_metadata(name_or_folder: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a weights file (`format`, `kind`, `architecture`, ...), without its tensors.

    The size of the header is checked against the file's size and a bound before memory is allocated.
    Raises as `read` does.
    """
    path = resolve(name_or_folder)
    texts = header.read(path)
    missing = [key for key in _OWN_KEYS if key not in texts]
    if missing:
        raise ValueError(
            f"{path}: expected a weights file of this package, found a safetensors file without the metadata "
            f"{', '.join(missing)}; convert it with one of the convert_weights programs"
        )
    if texts["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, found format {brief(texts['format'])}; "
            "write it again, or use the version of difflid_jax that wrote it"
        )
    architecture = header.from_text(texts["architecture"])
    if not isinstance(architecture, dict):
        raise ValueError(f"{path}: architecture: expected a JSON object, found {brief(architecture)}")
    metadata = {key: header.from_text(value) for key, value in texts.items() if key not in _OWN_KEYS}
    _check_metadata(path, metadata)
    return metadata | {"format": FORMAT, "kind": texts["kind"], "architecture": architecture}


def resolve(name_or_folder: str | os.PathLike) -> Path:
    """The `.safetensors` file of a shipped name, a folder or a file path.

    A plain name refers to shipped weights of that name before a folder; `./name` is always the folder.
    Raises FileNotFoundError, listing the shipped weights, if there is no such file.
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
    """Names of the weights that ship with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{FILE}"))


def tensors_of(module: "nnx.Module") -> dict[str, np.ndarray]:
    """Parameters and batch statistics of `module` by dotted name (`input_blocks.3.0.in_conv.kernel`)."""
    return {name: np.asarray(variable.get_value()) for name, variable in _variables(module)}


def shapes_of(module: "nnx.Module") -> dict[str, tuple[int, ...]]:
    """Shapes of the same tensors; works on an abstract module (`nnx.eval_shape`) too."""
    return {name: tuple(variable.get_value().shape) for name, variable in _variables(module)}


def fill(module: "nnx.Module", tensors: Mapping[str, Any], *, where: str, dtype: Any = None) -> None:
    """Set every parameter and batch statistic of `module` from `tensors`, each exactly once.

    `module` may be abstract (made under `nnx.eval_shape`). Floating tensors are cast to `dtype`, or else to
    the dtype that the module declares. Raises one ValueError, prefixed by the file `where`, on missing and
    unexpected names, different shapes, and integers in place of floats or vice versa.
    """
    import jax.numpy as jnp

    variables = dict(_variables(module))
    wrong = mismatches({name: tuple(np.shape(t)) for name, t in tensors.items()}, shapes_of(module))
    kinds = [
        f"{name} (expected {variables[name].get_value().dtype}, found {tensor.dtype})"
        for name, tensor in tensors.items()
        if name in variables and _is_float(tensor) != _is_float(variables[name].get_value())
    ]
    if kinds:
        wrong = "; ".join([wrong] * bool(wrong) + [f"{len(kinds)} of another type: {listed(kinds)}"])
    if wrong:
        raise ValueError(f"{where}: the weights do not fit the architecture: {wrong}")
    for name, variable in variables.items():
        declared = variable.get_value().dtype
        cast = dtype if dtype is not None and _is_float(variable.get_value()) else declared
        variable.set_value(jnp.array(tensors[name], dtype=cast))


def require_finite(name: str, tensor: np.ndarray, *, where: str | os.PathLike) -> None:
    """Raise ValueError, naming the file `where`, if a floating `tensor` holds NaN or infinity."""
    if _is_float(tensor) and not np.isfinite(tensor).all():
        raise ValueError(f"{where}: {name[:200]} holds NaN or infinity; the model is broken")


def mismatches(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """One line on how names and shapes in `found` differ from the `expected` ones; empty if they agree."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} (expected {expected[name]}, found {found[name]})"
        for name in sorted(expected.keys() & found.keys())
        if tuple(expected[name]) != tuple(found[name])
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in parts if names)


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    try:
        check_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: metadata: {error}") from error


def _is_float(array: Any) -> bool:
    return np.issubdtype(array.dtype, np.floating) or array.dtype == ml_dtypes.bfloat16


def _variables(module: "nnx.Module") -> list[tuple[str, "nnx.Variable"]]:
    from flax import nnx

    flat = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return [(".".join(str(step) for step in path), variable) for path, variable in flat]


def _stored_dtype(path: Path, name: str, value: Any, dtype: Any) -> np.dtype:
    found = np.dtype(value.dtype)
    stored = np.dtype(dtype) if dtype is not None and _is_float(value) else found
    if stored not in header.DTYPES:
        known = ", ".join(str(known) for known in header.DTYPES)
        raise ValueError(f"{path}: {name} has dtype {stored}; expected one of {known}")
    return stored


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
