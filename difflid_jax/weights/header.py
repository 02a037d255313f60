"""The header of a safetensors file: names, types and shapes of the tensors, and texts as metadata."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

# A header lists names, shapes and offsets: 1,000 tensors take about 100 kB.
MOST_BYTES = 8 << 20
DTYPES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
}


def encode(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    texts: Mapping[str, str],
) -> tuple[bytes, list[str], int]:
    """The file up to its tensors, their order and their size in bytes.

    Raises ValueError, naming the file `path`, for a header that `read` would refuse.
    """
    # Wider elements first keeps every tensor aligned; names second makes equal weights equal files.
    order = sorted(shapes, key=lambda name: (-dtypes[name].itemsize, name))
    fields: dict[str, Any] = {"__metadata__": dict(sorted(texts.items()))}
    end = 0
    for name in order:
        start, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        fields[name] = {
            "dtype": DTYPES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(fields, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MOST_BYTES:
        raise ValueError(
            f"{path}: names, shapes and metadata take {len(encoded):,} bytes, more than the {MOST_BYTES:,} "
            "that a reader accepts; put less into the metadata"
        )
    return len(encoded).to_bytes(8, "little") + encoded, order, end


def read(path: Path) -> dict[str, str]:
    """The metadata of the file, as texts.

    Raises ValueError if it is damaged; the size of the header is checked before memory is allocated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MOST_BYTES):
        raise damaged(path, f"{size:,} bytes with a header of {length:,} bytes according to the first 8")
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise damaged(path, error) from error


def to_text(value: Any) -> str:
    """A string as it is, anything else as JSON; a string that parses as JSON is quoted, to stay a string."""
    if isinstance(value, str) and from_text(value) is value:
        return value
    return json.dumps(value, sort_keys=True)


def from_text(text: str) -> Any:
    """The inverse of `to_text`: the value of JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def damaged(path: Path, why: object) -> ValueError:
    """The error for a file that is incomplete or damaged."""
    return ValueError(
        f"{path}: expected a complete safetensors file, found a damaged one ({why}); "
        "download or write it again"
    )
