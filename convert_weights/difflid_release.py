"""Weights of the authors' PyTorch release (aaaasan111/difflid), to be restored with as they are.

    python -m convert_weights.difflid_release best-epoch.pth --output weights/its_release \\
        --prior weights/256x256_diffusion_uncond

The release's network is not the paper's: difflid_jax/network/release.py says where it differs. Its features
are the whole output of OpenAI's 256x256_diffusion_uncond.pt, so that --prior is that model converted with
its decoder (`python -m convert_weights.openai_ddpm --part all`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from difflid_jax.cli import UsageError, refuse_existing, run
from difflid_jax.network.release import ReleasedDiffLI2D, ReleaseSpec
from difflid_jax.weights import store
from difflid_jax.weights.rules import CONV, LINEAR, Layout, Rule, map_tensors
from difflid_jax.weights.torch_file import read_torch

PRIOR = "256x256_diffusion_uncond"
# Beside the model, what the training script keeps for itself.
TRAINING_STATE = ("optimizer", "scheduler", "epoch", "best_psnr")

# Transposed convolution (in, out, 2, 2) ↔ (in, 2, 2, out)
_SPREAD = Layout(lambda w: w.transpose(0, 2, 3, 1), lambda w: w.transpose(0, 3, 1, 2))
_BLOCKS = {
    **{f"downs.{2 * i}": f"down_blocks.{i}" for i in range(3)},
    "bot": "bottom_block",
    **{f"ups.{2 * i + 1}": f"up_blocks.{i}" for i in range(3)},
}
_CONVOLUTIONS = {
    "init_conv": "stem",
    "final_conv": "head",
    **{f"concat_convL{3 - i}": f"merge.{i}" for i in range(3)},
    **{
        f"{theirs}.{layer}": f"{ours}.{name}"
        for theirs, ours in _BLOCKS.items()
        for layer, name in {
            "cim.ht1_conv": "cim.align",
            "cim.to_q": "cim.to_q",
            "cim.to_k": "cim.to_k",
            "cim.to_v": "cim.to_v",
            "cim.to_out": "cim.to_out",
            "hae.init_conv": "hae.smooth",
            "hae.gamma_conv1": "hae.gamma_in",
            "hae.gamma_conv2": "hae.gamma_out",
            "hae.beta_conv1": "hae.beta_in",
            "hae.beta_conv2": "hae.beta_out",
        }.items()
    },
}
_NORMS = {
    f"{theirs}.cim.norm_{which}": f"{ours}.cim.norm_{which}"
    for theirs, ours in _BLOCKS.items()
    for which in "qkv"
}
_STATISTICS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
RULES = [
    *(Rule(f"{theirs}.weight", f"{ours}.kernel", CONV) for theirs, ours in _CONVOLUTIONS.items()),
    *(Rule(f"{theirs}.bias", f"{ours}.bias") for theirs, ours in _CONVOLUTIONS.items()),
    *(
        Rule(f"{theirs}.{part}", f"{ours}.{name}")
        for theirs, ours in _NORMS.items()
        for part, name in _STATISTICS.items()
    ),
    *(Rule(f"{theirs}.hae.fc.weight", f"{ours}.hae.gate.kernel", LINEAR) for theirs, ours in _BLOCKS.items()),
    *(Rule(f"{theirs}.hae.fc.bias", f"{ours}.hae.gate.bias") for theirs, ours in _BLOCKS.items()),
    *(Rule(f"ups.{2 * i}.weight", f"up.{i}.spread.kernel", _SPREAD) for i in range(3)),
    *(Rule(f"ups.{2 * i}.bias", f"up.{i}.bias") for i in range(3)),
]
IGNORED = ("{*}.num_batches_tracked",)


def convert(checkpoint: Any, *, where: str) -> tuple[ReleaseSpec, dict[str, np.ndarray]]:
    """A checkpoint of the release's training script (or its bare state dict) → architecture and our tensors.

    `module.` prefixes, the optimiser's and the scheduler's state are left out. Raises ValueError, naming
    `where`, for anything else that is missing, unknown or of another shape.
    """
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"{where}: expected a checkpoint of the release, a dict, found a {type(checkpoint).__name__}"
        )
    model = checkpoint.get("model", checkpoint)
    if model is not checkpoint:
        unknown = sorted(map(str, set(checkpoint) - {"model", *TRAINING_STATE}))
        if unknown or not isinstance(model, Mapping):
            raise ValueError(
                f"{where}: expected 'model', a dict, and {', '.join(TRAINING_STATE)}; found more: {unknown}"
            )
    model = {str(name).removeprefix("module."): tensor for name, tensor in model.items()}
    for name in ("init_conv.weight", "bot.cim.ht1_conv.weight"):
        if np.ndim(model.get(name)) != 4:
            raise ValueError(
                f"{where}: expected the network of the authors' release, found no convolution {name}; "
                "diffusion models are converted by convert_weights.openai_ddpm"
            )
    width, features = model["bot.cim.ht1_conv.weight"].shape[:2]
    try:
        spec = ReleaseSpec(width=width, feature_channels=features)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    network = nnx.eval_shape(lambda: ReleasedDiffLI2D(spec, rngs=nnx.Rngs(0)))
    return spec, map_tensors(model, RULES, IGNORED, store.shapes_of(network), where=where)


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2 or not flags.FLAGS.output:
        raise UsageError("give one checkpoint of the release and --output FOLDER")
    refuse_existing(Path(flags.FLAGS.output) / store.FILE, flags.FLAGS.overwrite)
    source = Path(argv[1])
    spec, tensors = convert(read_torch(source), where=str(source))
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    path = store.save(
        flags.FLAGS.output,
        "restorer",
        tensors,
        spec.to_dict(),
        prior=flags.FLAGS.prior,
        features={"kind": "release", "times": [0, 500]},
        noise_seed=0,
        source=source.name,
        source_sha256=sha256,
    )
    count = sum(tensor.size for name, tensor in tensors.items() if not name.endswith((".mean", ".var")))
    print(f"{path}: the release's network, {count:,} parameters, from {source.name} (sha256 {sha256[:16]}…)")
    print(f"prior: {flags.FLAGS.prior} (restoring needs it with its decoder)")


if __name__ == "__main__":
    flags.DEFINE_string("output", None, "folder for the converted weights")
    flags.DEFINE_string("prior", PRIOR, "folder of the converted diffusion model that the features come from")
    flags.DEFINE_bool("overwrite", False, "replace weights that are there")
    run(main)
