"""How fast the h-space is: encoder alone, against the whole U-Net run twice, and against PyTorch.

    python scripts/benchmark.py hspace --size=128 --batch_size=40
    python scripts/benchmark.py hspace --weights=weights/imagenet256 --reference=~/src/guided-diffusion

Without --weights the model has the architecture of --preset and random weights. Where PyTorch is installed
and --reference is a checkout of openai/guided-diffusion, its model runs in the same process, in channels-last
layout. All rows are measured in turns, so that whatever else the machine does meets them alike; the last
column is the median over the turns of (time of this row / time of the first).

GFLOP are XLA's count before optimisation, a multiply-add as two. The peak is that of one large matrix product
in the same type, measured here. Memory is what the compiled program holds: arguments, results, temporaries.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.program import Refused, run
from difflid_jax.training.throughput import flops
from difflid_jax.weights import store

_WEIGHTS = flags.DEFINE_string("weights", "", "Shipped name or folder of a diffusion model; empty: random.")
_PRESET = flags.DEFINE_enum("preset", "256x256_diffusion_uncond", list(PRESETS), "Architecture if random.")
_SIZE = flags.DEFINE_integer("size", 128, "Side of the pictures.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Pictures in a call.", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Of the computation (auto: bfloat16 on GPU and TPU)."
)
_TURNS = flags.DEFINE_integer("turns", 10, "Times that each row is measured.", lower_bound=1)
_WHOLE = flags.DEFINE_bool("whole", True, "Measure the whole U-Net too.")
_REFERENCE = flags.DEFINE_string("reference", "", "Checkout of openai/guided-diffusion, to run beside.")


@dataclass
class Row:
    """What is measured: `call` runs once and waits for the result."""

    name: str
    call: Callable[[], None]
    flops: float = 0.0
    memory: int = 0
    seconds: list[float] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise Refused(f"unexpected argument {argv[1]!r}; every input has a flag, see --help")
    on_cpu = jax.default_backend() == "cpu"
    name = ("float32" if on_cpu else "bfloat16") if _DTYPE.value == "auto" else _DTYPE.value
    dtype = jnp.dtype(name)
    unet, schedule = _model(dtype)
    if _SIZE.value % unet.spec.stride:
        raise Refused(f"--size {_SIZE.value}: expected a multiple of {unet.spec.stride}")
    if unet.spec.in_channels != 3:
        raise Refused(f"expected a model of RGB pictures, found {unet.spec.in_channels} channels")
    rows = _ours(unet, schedule)
    if _REFERENCE.value:
        rows += _theirs(unet.spec, rows, name)
    peak_row = _matrix_product(dtype, on_cpu)
    for row in [*rows, peak_row]:
        row.call()
    for _ in range(_TURNS.value):
        for row in [*rows, peak_row]:
            # PyTorch's threads go on spinning for a while after their work.
            time.sleep(0.3 if _REFERENCE.value and on_cpu else 0)
            start = time.perf_counter()
            row.call()
            row.seconds.append(time.perf_counter() - start)
    _print(rows, peak_row.flops / min(peak_row.seconds), name)


def _model(dtype: Any) -> tuple[UNet, Schedule]:
    if _WEIGHTS.value:
        whole = _WHOLE.value and store.read_metadata(_WEIGHTS.value).get("part", "all") == "all"
        prior = load_prior(_WEIGHTS.value, part="all" if whole else "encoder", dtype=dtype)
        return prior.unet, prior.schedule
    spec = PRESETS[_PRESET.value]
    unet = nnx.eval_shape(
        lambda: UNet(spec, part="all" if _WHOLE.value else "encoder", dtype=dtype, rngs=nnx.Rngs(0))
    )
    # A million numbers repeated: drawing half a billion would take longer than the measurement.
    drawn = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    tensors = {name: np.resize(drawn, shape) for name, shape in store.shapes_of(unet).items()}
    store.fill(unet, tensors, where="random weights")
    return unet, Schedule.named(spec.noise_schedule, spec.diffusion_steps)


def _ours(unet: UNet, schedule: Schedule) -> list[Row]:
    graph, parameters = nnx.split(unet)
    x = jax.random.uniform(jax.random.key(0), (_BATCH.value, _SIZE.value, _SIZE.value, 3), minval=-1)
    key = jax.random.key(1)
    t = jnp.full(len(x), 500)
    labels = None if unet.spec.num_classes is None else jnp.zeros(len(x), jnp.int32)

    def features(parameters, x, key):
        return h_space(nnx.merge(graph, parameters), schedule, x, key, HSpaceSpec())

    def whole(parameters, x, t, labels):
        return nnx.merge(graph, parameters)(x, t, labels)

    rows = [_compiled("h-space at both timesteps", features, parameters, x, key)]
    if unet.part == "all":
        once = _compiled("whole U-Net", whole, parameters, x, t, labels)

        def twice():
            once.call()
            once.call()

        rows.append(Row("whole U-Net, twice", twice, 2 * once.flops, once.memory))
    return rows


def _compiled(name: str, function: Callable[..., Any], *arguments: Any) -> Row:
    lowered = jax.jit(function).lower(*arguments)
    compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    memory = sum(getattr(analysis, size, 0) for size in sizes)
    return Row(name, lambda: jax.block_until_ready(compiled(*arguments)), flops(lowered), memory)


def _matrix_product(dtype: Any, on_cpu: bool) -> Row:
    side = 2048 if on_cpu else 8192
    a = jax.random.normal(jax.random.key(2), (side, side), dtype)
    product = jax.jit(jnp.matmul)
    return Row("matrix product", lambda: jax.block_until_ready(product(a, a)), 2 * side**3)


def _theirs(spec: UNetSpec, ours: list[Row], dtype: str) -> list[Row]:
    """The reference implementation on the same kind of device; it does the same work."""
    sys.path.insert(0, str(Path(_REFERENCE.value).expanduser()))
    try:
        import torch
        from guided_diffusion.nn import timestep_embedding
        from guided_diffusion.unet import UNetModel
    except ImportError as error:
        raise Refused(f"--reference {_REFERENCE.value}: PyTorch's side cannot run: {error}") from error
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    with torch.device("meta"):
        model = UNetModel(
            image_size=spec.image_size,
            in_channels=spec.in_channels,
            model_channels=spec.model_channels,
            out_channels=spec.out_channels,
            num_res_blocks=spec.num_res_blocks,
            attention_resolutions=spec.attention_resolutions,
            channel_mult=spec.channel_mult,
            num_classes=spec.num_classes,
            num_heads=spec.num_heads,
            num_head_channels=spec.num_head_channels,
            use_scale_shift_norm=spec.use_scale_shift_norm,
            resblock_updown=spec.resblock_updown,
            use_new_attention_order=spec.use_new_attention_order,
        )
    model = model.to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    model = model.to(memory_format=torch.channels_last)
    batch = _BATCH.value

    def pictures(number):
        x = torch.rand(number, 3, _SIZE.value, _SIZE.value, device=device) * 2 - 1
        labels = None if spec.num_classes is None else torch.zeros(number, dtype=torch.long, device=device)
        return x.to(memory_format=torch.channels_last), torch.full((number,), 500, device=device), labels

    both, once = pictures(2 * batch), pictures(batch)

    def timed(work: Callable[[], None]) -> Callable[[], None]:
        def call():
            low = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
            with torch.inference_mode(), low:
                work()
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    def encode():
        x, t, labels = both
        emb = model.time_embed(timestep_embedding(t, spec.model_channels))
        if labels is not None:
            emb = emb + model.label_emb(labels)
        skips = []
        for block in model.input_blocks:
            x = block(x, emb)
            skips.append(x)
        model.middle_block(x, emb)

    def twice():
        model(*once)
        model(*once)

    rows = [Row("PyTorch: encoder, channels last", timed(encode), ours[0].flops)]
    if len(ours) > 1:
        rows.append(Row("PyTorch: whole U-Net, twice", timed(twice), ours[1].flops))
    return rows


def _print(rows: list[Row], peak: float, dtype: str) -> None:
    device = jax.devices()[0]
    print(
        f"{device.device_kind}, jax {jax.__version__}, {dtype}, {_BATCH.value} × {_SIZE.value}×{_SIZE.value}"
    )
    print(f"measured matrix peak {peak / 1e9:,.0f} GFLOP/s; medians of {_TURNS.value} turns")
    titles = ("images/s", "GFLOP/image", "GFLOP/s", "of peak", "memory", "time/first")
    print(f"{'':34}" + "".join(f"{title:>12}" for title in titles))
    for row in rows:
        seconds = float(np.median(row.seconds))
        ratio = float(np.median(np.divide(row.seconds, rows[0].seconds)))
        rate = row.flops / seconds
        memory = f"{row.memory / 2**20:,.0f} MiB" if row.memory else "-"
        print(
            f"{row.name:34}{_BATCH.value / seconds:12,.2f}{row.flops / _BATCH.value / 1e9:12,.1f}"
            f"{rate / 1e9:12,.0f}{rate / peak:12.1%}{memory:>12}{ratio:12.2f}"
        )


if __name__ == "__main__":
    run(main)
