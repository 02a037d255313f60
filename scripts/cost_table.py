"""What restoring an image costs: operations and parameters, as XLA counts them.

    python scripts/cost_table.py

The paper argues (Sec. 4.2) that its features need no sampling. The table compares DiffLI²D, which runs half
of the ImageNet-256 U-Net twice and a small network once, with one pass of the whole U-Net and with 50 steps
of DDIM sampling. A multiply-add counts as two operations. Programs are lowered for a GPU from shapes alone;
none is compiled or run.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from difflid_jax.cli import UsageError, run
from difflid_jax.diffusion import blocks
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec

_UNET = PRESETS["256x256_diffusion_uncond"]
_DDIM_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations for one image, and parameters."""

    flops: float
    parameters: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.parameters + other.parameters)


def rows(width: int, height: int) -> dict[str, Cost]:
    """The methods' costs for an image of `width`×`height`, padded to multiples of each network's stride."""
    image = _image(width, height, _UNET.stride)
    schedule = Schedule.named(_UNET.noise_schedule, _UNET.diffusion_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((1,), jnp.int32)

    def unet(part: str) -> nnx.Module:
        return nnx.eval_shape(lambda: UNet(_UNET, part=part, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))

    def features(unet, x, key):
        return h_space(unet, schedule, x, key, HSpaceSpec())

    h = jax.ShapeDtypeStruct(
        (1, image.shape[1] // _UNET.stride, image.shape[2] // _UNET.stride, _UNET.bottleneck_channels),
        jnp.float32,
    )

    def network(make: type, spec: NetworkSpec) -> Cost:
        module = nnx.eval_shape(lambda: make(spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
        return cost(
            lambda module, *inputs: module(*inputs)[0], module, _image(width, height, spec.stride), h, h
        )

    both = cost(features, unet("encoder"), image, key)
    whole = cost(lambda unet, x, t: unet(x, t), unet("all"), image, step)
    return {
        "h-space at both timesteps (half of the U-Net, twice)": both,
        "DiffLI²D: h-space and network": both + network(DiffLI2D, NetworkSpec()),
        "DiffLI²D+: h-space and network": both + network(DiffLI2DPlus, PlusSpec()),
        "the whole U-Net, once": whole,
        f"{_DDIM_STEPS} steps of DDIM": Cost(_DDIM_STEPS * whole.flops, whole.parameters),
    }


def cost(function: Callable, module: nnx.Module, *inputs: jax.ShapeDtypeStruct) -> Cost:
    """The cost of `function(module, *inputs)`, for a module and inputs that are shapes only."""
    graph, params = nnx.split(module)
    traced = jax.jit(lambda params, *inputs: function(nnx.merge(graph, params), *inputs)).trace(
        params, *inputs
    )
    counted = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return Cost(float(counted["flops"]), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)))


def _image(width: int, height: int, multiple: int) -> jax.ShapeDtypeStruct:
    padded = (-(-side // multiple) * multiple for side in (height, width))
    return jax.ShapeDtypeStruct((1, *padded, 3), jnp.float32)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    # Attention in one piece: XLA would count only one iteration of a loop.
    blocks.MAX_SCORES = 1 << 62
    sizes = [tuple(map(int, size.split("x"))) for size in flags.FLAGS.sizes]
    tables = [rows(*size) for size in sizes]
    print("| method | " + " | ".join(f"GFLOP at {w}×{h}" for w, h in sizes) + " | parameters, millions |")
    print("|---|" + "---:|" * (len(sizes) + 1))
    for name, first in tables[0].items():
        flops = " | ".join(f"{table[name].flops / 1e9:,.0f}" for table in tables)
        print(f"| {name} | {flops} | {first.parameters / 1e6:,.1f} |")


if __name__ == "__main__":
    flags.DEFINE_list("sizes", "256x256,620x460", "Sizes of the image, WIDTHxHEIGHT.")
    run(main)
