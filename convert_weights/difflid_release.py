"""Converts checkpoints of the authors' PyTorch release (aaaasan111/difflid) to a restorer.

    python -m convert_weights.difflid_release best-epoch.pth --output=weights/its_release \\
        --prior=weights/256x256_diffusion_uncond

The release's network differs from the paper's; see difflid_jax/network/release.py. Its features are the
output of OpenAI's 256x256_diffusion_uncond.pt, so --prior is that model converted with its decoder
(`python -m convert_weights.openai_ddpm --part=all`).
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from convert_weights import program
from difflid_jax.cli import UsageError, definer, expand_home, run
from difflid_jax.weights import store
from difflid_jax.weights.rules import CONV, LINEAR, Layout, Rule, map_tensors
from difflid_jax.weights.schema import listed
from difflid_jax.weights.torch_file import read_torch

if TYPE_CHECKING:
    from difflid_jax.network.release import ReleaseSpec

PRIOR = "256x256_diffusion_uncond"
# What the training script saves alongside the model.
TRAINING_STATE = ("optimizer", "scheduler", "epoch", "best_psnr")

# Transposed convolution (in, out, 2, 2) ↔ (in, 2, 2, out)
_SPREAD = Layout(lambda w: w.transpose(0, 2, 3, 1), lambda w: w.transpose(0, 3, 1, 2))
_BLOCKS = {
    **{f"downs.{2 * i}": f"down_blocks.{i}" for i in range(3)},
    "bot": "bottom_block",
    **{f"ups.{2 * i + 1}": f"up_blocks.{i}" for i in range(3)},
}
_BLOCK_CONVOLUTIONS = {
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
}
_CONVOLUTIONS = {
    "init_conv": "stem",
    "final_conv": "head",
    **{f"concat_convL{3 - i}": f"merge.{i}" for i in range(3)},
    **{
        f"{theirs}.{inner}": f"{ours}.{name}"
        for theirs, ours in _BLOCKS.items()
        for inner, name in _BLOCK_CONVOLUTIONS.items()
    },
}
RULES = [
    *(rule for theirs, ours in _CONVOLUTIONS.items() for rule in program.layer(theirs, ours, CONV)),
    *(
        rule
        for theirs, ours in _BLOCKS.items()
        for which in "qkv"
        for rule in program.norm(f"{theirs}.cim.norm_{which}", f"{ours}.cim.norm_{which}", statistics=True)
    ),
    *(
        rule
        for theirs, ours in _BLOCKS.items()
        for rule in program.layer(f"{theirs}.hae.fc", f"{ours}.hae.gate", LINEAR)
    ),
    *(Rule(f"ups.{2 * i}.weight", f"up.{i}.spread.kernel", _SPREAD) for i in range(3)),
    *(Rule(f"ups.{2 * i}.bias", f"up.{i}.bias") for i in range(3)),
]
IGNORED = ("{*}.num_batches_tracked",)


def convert(checkpoint: Any, *, where: str) -> tuple["ReleaseSpec", dict[str, np.ndarray]]:
    """The architecture and our tensors of a checkpoint of the release, or of its bare state dict.

    The state of the optimizer and the scheduler is left out. Raises ValueError, naming the file `where`, for
    anything else that is missing, unknown or of another shape.
    """
    # Imported here so that --help does not wait for JAX to load.
    from difflid_jax.network.release import ReleaseSpec

    if isinstance(checkpoint, Mapping) and "model" in checkpoint:
        unknown = [str(name)[:80] for name in checkpoint if name not in ("model", *TRAINING_STATE)]
        if unknown:
            expected = ", ".join(TRAINING_STATE)
            raise ValueError(
                f"{where}: expected 'model' and {expected}; found unknown entries {listed(unknown)}"
            )
        checkpoint = checkpoint["model"]
    model = program.state_dict(checkpoint, where=where, of="the authors' release")
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
    return spec, map_tensors(model, RULES, IGNORED, _shapes(spec), where=where)


@functools.cache
def _shapes(spec: "ReleaseSpec") -> dict[str, tuple[int, ...]]:
    from flax import nnx

    from difflid_jax.network.release import ReleasedDiffLI2D

    return store.shapes_of(nnx.eval_shape(lambda: ReleasedDiffLI2D(spec, rngs=nnx.Rngs(0))))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    define = definer(values)
    program.define_flags(values)
    define("path", "prior", PRIOR, "Folder of the converted diffusion model, with its decoder.")
    return values


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) != 2:
        raise UsageError("give one checkpoint of the release and --output FOLDER")
    program.require_output(options)
    source = Path(expand_home(argv[1]))
    spec, tensors = convert(read_torch(source), where=str(source))
    features = {"kind": "release", "times": [0, 500]}
    about = {"prior": options.prior, "features": features, "noise_seed": 0}
    program.write(options, "restorer", tensors, spec.to_dict(), [source], **about)
    print(f"prior: {options.prior} (restoring needs it with its decoder)")


if __name__ == "__main__":
    run(main, define_flags)
