"""What the converters share: flags, the state dict in a checkpoint, and writing the result."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from difflid_jax.atomic import sha256_of
from difflid_jax.cli import UsageError, definer, refuse_existing
from difflid_jax.weights import store
from difflid_jax.weights.rules import Layout, Rule
from difflid_jax.weights.schema import listed


def define_flags(values: flags.FlagValues) -> None:
    """The flags of every converter."""
    define = definer(values)
    define("path", "output", None, "Folder for the converted weights.")
    define("bool", "overwrite", False, "Replace existing weights in --output.")


def require_output(options: flags.FlagValues) -> None:
    """Raise UsageError if --output is missing or holds weights that may not be replaced."""
    if not options.output:
        raise UsageError("give --output FOLDER")
    refuse_existing(Path(options.output) / store.FILE, options.overwrite)


def layer(theirs: str, ours: str, layout: Layout) -> tuple[Rule, Rule]:
    """The rules of a convolution or linear layer with a bias."""
    return Rule(f"{theirs}.weight", f"{ours}.kernel", layout), Rule(f"{theirs}.bias", f"{ours}.bias")


def norm(theirs: str, ours: str, *, statistics: bool = False) -> tuple[Rule, ...]:
    """The rules of a normalization layer; `statistics`: it holds running ones (BatchNorm)."""
    names = {"weight": "scale", "bias": "bias"}
    names |= {"running_mean": "mean", "running_var": "var"} if statistics else {}
    return tuple(Rule(f"{theirs}.{their}", f"{ours}.{our}") for their, our in names.items())


def state_dict(checkpoint: Any, *, where: str, of: str) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch state dict, without the prefixes of DataParallel and torch.compile.

    of: what the state dict should hold, for error messages. Raises ValueError, naming the file `where`, for
    anything but names and tensors.
    """
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(
            f"{where}: expected a state dict (name → tensor) of {of}, found a {type(checkpoint).__name__}"
        )
    others = [str(name)[:80] for name, value in checkpoint.items() if not isinstance(value, np.ndarray)]
    others += [str(name)[:80] for name in checkpoint if not isinstance(name, str)]
    if others:
        inner = [name for name, value in checkpoint.items() if isinstance(value, Mapping)]
        key = inner[0] if inner and isinstance(inner[0], str) else "state_dict"
        raise ValueError(
            f"{where}: expected a state dict (name → tensor) of {of}, found entries that are not tensors: "
            f"{listed(others)}; save the state dict alone with PyTorch: "
            f"torch.save(torch.load(FILE)[{key[:80]!r}], NEW_FILE)"
        )
    tensors = {}
    for name, tensor in checkpoint.items():
        plain = re.sub(r"(^|\.)_orig_mod\.", r"\1", name)
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        if plain in tensors:
            raise ValueError(f"{where}: holds {plain} twice, with and without a prefix of PyTorch's wrappers")
        tensors[plain] = tensor
    return tensors


def write(
    options: flags.FlagValues,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    architecture: dict[str, Any],
    sources: Sequence[Path],
    **metadata: Any,
) -> None:
    """Write the weights to --output and print what they are. `metadata`: more arguments of `store.save`."""
    digests = [sha256_of(source) for source in sources]
    path = store.save(
        Path(options.output),
        kind,
        tensors,
        architecture,
        progress=True,
        source=", ".join(source.name for source in sources),
        source_sha256=", ".join(digests),
        **metadata,
    )
    # Statistics of BatchNorm are not parameters.
    count = sum(tensor.size for name, tensor in tensors.items() if not name.endswith((".mean", ".var")))
    files = ", ".join(f"{s.name} (SHA-256 {digest})" for s, digest in zip(sources, digests, strict=True))
    print(f"{path}: {kind}, {count:,} parameters, from {files}")
