"""What restoring an image costs: operations, parameters and memory, as XLA counts them.

    python scripts/cost_table.py
    python scripts/cost_table.py --target=h100

The paper argues (Sec. 4.2) that its features need no sampling. The table compares DiffLI²D, which runs half
of the ImageNet-256 U-Net twice and a small network once, with one pass of the whole U-Net and with 50 steps
of DDIM sampling. A multiply-add counts as two operations. Programs are lowered for a GPU from shapes alone;
none is run. With --target they are also compiled for that GPU, which needs the virtual environment of
gpu_compile.py, and the table gives their memory: weights in bfloat16 and temporaries, without cuDNN's
workspaces. Programs that run one after the other share temporaries.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import gpu_compile  # first: it sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.cli import refuse_arguments, run
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import in_compute_dtype
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec

_UNET = PRESETS["256x256_diffusion_uncond"]
_DDIM_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations for one image, parameters, and bytes on the GPU: weights and image, and temporaries."""

    flops: float
    parameters: int
    arguments: int = 0
    temporaries: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.parameters + other.parameters,
            self.arguments + other.arguments,
            max(self.temporaries, other.temporaries),
        )


def rows(width: int, height: int, mesh: Mesh | None = None) -> dict[str, Cost]:
    """The methods' costs for an image of `width`×`height`, padded to multiples of each network's stride.

    mesh: also compile for its GPU, for the memory.
    """
    image = _image(width, height, _UNET.stride)
    schedule = Schedule.named(_UNET.noise_schedule, _UNET.diffusion_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.ShapeDtypeStruct((1,), jnp.int32)

    def unet(part: str) -> nnx.Module:
        def frozen() -> UNet:
            model = UNet(_UNET, part=part, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            in_compute_dtype(model)
            return model

        return nnx.eval_shape(frozen)

    def features(unet, x, key):
        return h_space(unet, schedule, x, key, HSpaceSpec())

    h = jax.ShapeDtypeStruct(
        (1, image.shape[1] // _UNET.stride, image.shape[2] // _UNET.stride, _UNET.bottleneck_channels),
        jnp.float32,
    )

    def network(make: type, spec: NetworkSpec) -> Cost:
        module = nnx.eval_shape(lambda: make(spec, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
        hazy = _image(width, height, spec.stride)
        return cost(lambda module, *inputs: module(*inputs)[0], module, hazy, h, h, mesh=mesh)

    both = cost(features, unet("encoder"), image, key, mesh=mesh)
    whole = cost(lambda unet, x, t: unet(x, t), unet("all"), image, step, mesh=mesh)
    return {
        "h-space at both timesteps (half of the U-Net, twice)": both,
        "DiffLI²D: h-space and network": both + network(DiffLI2D, NetworkSpec()),
        "DiffLI²D+: h-space and network": both + network(DiffLI2DPlus, PlusSpec()),
        "the whole U-Net, once": whole,
        f"{_DDIM_STEPS} steps of DDIM": dataclasses.replace(whole, flops=_DDIM_STEPS * whole.flops),
    }


def cost(
    function: Callable, module: nnx.Module, *inputs: jax.ShapeDtypeStruct, mesh: Mesh | None = None
) -> Cost:
    """The cost of `function(module, *inputs)`, for a module and inputs that are shapes only."""
    graph, params = nnx.split(module)
    program = jax.jit(lambda params, *inputs: function(nnx.merge(graph, params), *inputs))
    counted = program.trace(params, *inputs).lower(lowering_platforms=("cuda",)).cost_analysis()
    found = Cost(float(counted["flops"]), sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)))
    if mesh is None:
        return found
    everywhere = parallel.replicated(mesh)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), (params, *inputs)
    )
    memory = program.lower(*placed).compile().memory_analysis()
    temporaries = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return dataclasses.replace(found, arguments=memory.argument_size_in_bytes, temporaries=temporaries)


def _image(width: int, height: int, multiple: int) -> jax.ShapeDtypeStruct:
    padded = (-(-side // multiple) * multiple for side in (height, width))
    return jax.ShapeDtypeStruct((1, *padded, 3), jnp.float32)


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    mesh = gpu_compile.gpu_mesh(flags.FLAGS.target, 1) if flags.FLAGS.target else None
    sizes = [tuple(map(int, size.split("x"))) for size in flags.FLAGS.sizes]
    tables = [rows(*size, mesh) for size in sizes]
    head = ["method", *(f"GFLOP at {w}×{h}" for w, h in sizes), "parameters, millions"]
    head += [f"GiB at {w}×{h}" for w, h in sizes if mesh]
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for name, first in tables[0].items():
        costs = [table[name] for table in tables]
        cells = [name, *(f"{each.flops / 1e9:,.0f}" for each in costs), f"{first.parameters / 1e6:,.1f}"]
        cells += [f"{(each.arguments + each.temporaries) / 2**30:.2f}" for each in costs if mesh]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    flags.DEFINE_list("sizes", "256x256,620x460", "Sizes of the image, WIDTHxHEIGHT.")
    flags.register_validator(
        "sizes",
        lambda sizes: all(re.fullmatch("[1-9][0-9]*x[1-9][0-9]*", size) for size in sizes),
        "expected WIDTHxHEIGHT, as in 620x460",
    )
    flags.DEFINE_enum("target", "", ["", *gpu_compile.TARGETS], "Also compile for this GPU, for the memory.")
    run(main)
