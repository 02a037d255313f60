"""Compile the train step for a GPU on a machine without one, and count what XLA made of it.

    python scripts/gpu_compile.py --config=configs/sots.py
    python scripts/gpu_compile.py --config=configs/sots.py --config.network.dtype=bfloat16 --devices=8
    python scripts/gpu_compile.py --config=configs/sots.py --target=rtx3070 --batch=4

It needs XLA's GPU compiler but no GPU. In a virtual environment of its own (about 6 GB):

    python3.11 -m venv gpuvenv
    gpuvenv/bin/pip install "jax[cuda12]==0.10.2" -c constraints.txt -e .

The step is built from shapes alone, so no weights are read and little memory is needed. If --config.prior is
empty, the frozen model is the ImageNet-256 U-Net. One compilation takes about a minute of one CPU core.

The table gives memory on each device, the kernels of one step by kind, the types of the convolutions, and the
collectives with their bytes. These are counts and not times. Convolution and GEMM algorithms are normally
chosen by timing them on the card; here they are the default ones, and workspace they may need is not counted.
"""

import os
from collections.abc import Sequence
from pathlib import Path

# Read by JAX when it is imported.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")

import gpu_program
import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

from difflid_jax import parallel
from difflid_jax.cli import UsageError, definer, refuse_arguments, run
from difflid_jax.config import experiment as experiments
from difflid_jax.config.experiment import Experiment
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.features.h_space import feature_channels, h_space
from difflid_jax.features.prior import in_compute_dtype
from difflid_jax.network.difflid import DiffLI2D
from difflid_jax.tasks.restorer import arrays_of, loss_of, make_network
from difflid_jax.training.step import initial_state, make_step
from difflid_jax.weights import store

_ROOT = Path(__file__).resolve().parents[1]
_FOLDER = _ROOT / "scripts" / "gpu_targets"
TARGETS = sorted(path.stem for path in _FOLDER.glob("*.txtpb"))


def compile_step(experiment: Experiment, target: str, devices: int) -> jax.stages.Compiled:
    """The step of an experiment, compiled for `devices` of the GPU `target`, one of `TARGETS`."""
    mesh = gpu_mesh(target, devices)
    parallel.check_batch_size(mesh, experiment.batch_size)
    unet_spec, spec, dtype = _prior_spec(experiment), experiment.features.h_space, experiment.features.dtype
    # "auto" would look at this machine, which has no GPU.
    dtype = jnp.dtype("bfloat16" if dtype == "auto" else dtype)

    def prior() -> UNet:
        unet = UNet(unet_spec, part=spec.part, dtype=dtype, rngs=nnx.Rngs(0))
        in_compute_dtype(unet)
        return unet

    unet = nnx.eval_shape(prior)
    schedule = Schedule.named(unet_spec.noise_schedule, unet_spec.diffusion_steps)
    unet_graph, frozen = nnx.split(unet)
    channels = feature_channels(unet, spec)
    network_spec = experiment.network_on(channels)

    def network() -> DiffLI2D:
        return make_network(network_spec, experiment)

    graph = nnx.graphdef(nnx.eval_shape(network))
    optimizer = experiment.optimizer(13_990)
    state = jax.eval_shape(lambda: initial_state(nnx.state(network()), optimizer, 0))

    def apply(frozen, x, key):
        with jax.named_scope("frozen"):
            return h_space(nnx.merge(unet_graph, parallel.gathered(mesh, frozen)), schedule, x, key, spec)

    def shaped(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), tree)

    replicated = parallel.replicated(mesh)
    features = FrozenFeatures(apply, frozen, channels, spec.multiple(unet_spec), "", spec.side)
    batch = {
        name: jax.ShapeDtypeStruct((experiment.batch_size, *array.shape), array.dtype)
        for name, array in arrays_of(experiment, features).items()
    }
    step = make_step(loss_of(experiment, graph, apply), optimizer)
    lowered = jax.jit(step, donate_argnums=0, out_shardings=replicated).lower(
        shaped(state, lambda x: replicated),
        shaped(frozen, lambda x: parallel.frozen_format(mesh, x, fsdp=experiment.fsdp)),
        shaped(batch, lambda x: parallel.batch_sharded(mesh)),
    )
    return lowered.compile()


def gpu_mesh(target: str, devices: int) -> Mesh:
    """A mesh over GPUs that need not exist, of the kind `target`, one of `TARGETS`.

    Raises UsageError if XLA's GPU compiler is not installed.
    """
    description = (_FOLDER / f"{target}.txtpb").read_text()
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"1x1x{devices}"
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UsageError(f"XLA cannot compile for CUDA here, see --help ({error})") from error
    return parallel.make_mesh(topology.devices)


def _prior_spec(experiment: Experiment) -> UNetSpec:
    if experiment.features.kind != "h_space":
        raise UsageError(f"config.features.kind: expected 'h_space', found {experiment.features.kind!r}")
    if not experiment.prior:
        return PRESETS["256x256_diffusion_uncond"]
    return UNetSpec.from_dict(store.read_metadata(experiment.prior)["architecture"])


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    refuse_arguments(argv)
    config = options.config
    config.data.batch_size = options.batch or config.data.batch_size
    config.data.crop = options.crop or config.data.crop
    experiment = experiments.resolve(config)
    compiled = compile_step(experiment, options.target, options.devices)
    if options.hlo:
        Path(options.hlo).write_text(compiled.as_text())
    print(
        f"{options.devices} × {options.target}, jax {jax.__version__}: batch {config.data.batch_size}, crop "
        f"{config.data.crop}, network in {config.network.dtype}, fsdp {config.training.fsdp}\n"
    )
    print(table(compiled))


def table(compiled: jax.stages.Compiled) -> str:
    """A Markdown table of what a compiled step takes and consists of."""
    memory, program = compiled.memory_analysis(), gpu_program.count(compiled.as_text())
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    rows = {
        "arguments, GiB per device": f"{memory.argument_size_in_bytes / 2**30:.2f}",
        "results beyond the arguments' buffers, GiB": f"{results / 2**30:.2f}",
        "temporaries, GiB": f"{memory.temp_size_in_bytes / 2**30:.2f}",
        "kernels": f"{program.launches:,}",
        **{f"— {kind}": f"{number:,}" for kind, number in program.kernels.items()},
        "loops": f"{program.loops}",
        "host transfers": f"{program.host_transfers}",
    }
    for half, types in program.convolutions.items():
        found = ", ".join(f"{number} in {dtype}" for dtype, number in types.items())
        rows[f"convolutions of the {half} half"] = found or "none"
    for kind, (number, size) in program.collectives.items():
        rows[kind] = f"{number}, {size / 2**20:,.1f} MiB"
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| per step | |", "|---|---:|", *lines])


if __name__ == "__main__":
    define = definer()
    config_flags.DEFINE_config_file("config", str(_ROOT / "configs" / "sots.py"), "The experiment.")
    define("integer", "devices", 1, "GPUs of one host that share the batch.", lower_bound=1)
    define("integer", "batch", 0, "Crops per step over all devices; 0: as configured.", lower_bound=0)
    define("integer", "crop", 0, "Side of a crop in pixels; 0: as configured.", lower_bound=0)
    define("enum", "target", "h100", TARGETS, "The GPU.")
    define("path", "hlo", "", "Also write the compiled program to this file.")
    run(main)
