"""How fast the h-space is: the encoder alone, compared with two runs of the whole U-Net and with PyTorch.

    python scripts/benchmark.py hspace --size=128 --batch_size=40
    python scripts/benchmark.py hspace --weights=weights/imagenet256 --reference=~/src/guided-diffusion

Without --weights the model has the architecture of --preset and random weights. If PyTorch is installed
and --reference is a checkout of openai/guided-diffusion, its model runs in the same process, in channels-last
layout. All rows are measured in turns, so that other work on the machine affects them alike; the last
column is the median over the turns of (time of this row / time of the first).

GFLOP are XLA's count before optimization, a multiply-add as two. The peak is that of large matrix products in
the same type, measured here. Memory is what the compiled program holds: arguments, results, temporaries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from measuring import Part, compiled_part, measure_in_turns, pytorch_unet, random_unet

from difflid_jax.cli import UsageError, refuse_arguments, run
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.h_space import HSpaceSpec, h_space
from difflid_jax.features.prior import load_prior
from difflid_jax.weights import store


@dataclass(frozen=True)
class Measured:
    """rows: the h-space, the whole U-Net run twice and PyTorch's two, if requested.

    peak: FLOP/s of large matrix products in `dtype`, measured in turns with the rows.
    """

    rows: list[Part]
    peak: float
    dtype: str
    size: int
    batch: int

    @property
    def share_of_peak(self) -> float:
        """The h-space's share of the measured peak."""
        return self.rows[0].flops / self.rows[0].median / self.peak

    def ratio(self, row: Part) -> float:
        """How many times as long as the h-space a row takes: the median over the turns."""
        return float(np.median(np.divide(row.seconds, self.rows[0].seconds)))


def measure(
    *,
    weights: str,
    preset: str,
    size: int,
    batch: int,
    turns: int,
    dtype: str = "auto",
    whole: bool = True,
    reference: str = "",
) -> Measured:
    """Measure with `weights`, or random ones of `preset` if they are ''; the other arguments as the flags."""
    on_cpu = jax.default_backend() == "cpu"
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    unet, schedule = _model(weights, preset, whole, jnp.dtype(dtype))
    if size % unet.spec.stride:
        raise UsageError(f"--size {size}: expected a multiple of {unet.spec.stride}")
    if unet.spec.in_channels != 3:
        raise UsageError(f"expected a model of RGB images, found {unet.spec.in_channels} channels")
    rows = _ours(unet, schedule, batch, size)
    if reference:
        rows += _theirs(reference, unet.spec, rows, dtype, batch, size)
    peak_row = _matrix_products(jnp.dtype(dtype), on_cpu)
    measure_in_turns([*rows, peak_row], turns, rest=0.3 if reference and on_cpu else 0)
    return Measured(rows, peak_row.flops / min(peak_row.seconds), dtype, size, batch)


def _model(weights: str, preset: str, whole: bool, dtype: Any) -> tuple[UNet, Schedule]:
    if weights:
        whole = whole and store.read_metadata(weights).get("part", "all") == "all"
        prior = load_prior(weights, part="all" if whole else "encoder", dtype=dtype)
        return prior.unet, prior.schedule
    spec = PRESETS[preset]
    unet = random_unet(spec, "all" if whole else "encoder", dtype)
    return unet, Schedule.named(spec.noise_schedule, spec.diffusion_steps)


def _ours(unet: UNet, schedule: Schedule, batch: int, size: int) -> list[Part]:
    graph, parameters = nnx.split(unet)
    x = jax.random.uniform(jax.random.key(0), (batch, size, size, 3), minval=-1)
    key = jax.random.key(1)
    t = jnp.full(len(x), 500)
    labels = None if unet.spec.num_classes is None else jnp.zeros(len(x), jnp.int32)

    def features(parameters, x, key):
        return h_space(nnx.merge(graph, parameters), schedule, x, key, HSpaceSpec())

    def whole(parameters, x, t, labels):
        return nnx.merge(graph, parameters)(x, t, labels)

    rows = [compiled_part("h-space at both timesteps", features, parameters, x, key)]
    if unet.part == "all":
        once = compiled_part("whole U-Net", whole, parameters, x, t, labels)

        def twice():
            once.call()
            once.call()

        rows.append(Part("whole U-Net, twice", twice, 2 * once.flops, once.memory))
    return rows


def _matrix_products(dtype: Any, on_cpu: bool) -> Part:
    """Large matrix products: several in a row on a GPU, so that the launch of the first hardly counts."""
    side, number = (2048, 1) if on_cpu else (8192, 8)
    a = (jax.random.normal(jax.random.key(2), (side, side)) / side**0.5).astype(dtype)

    @jax.jit
    def products(a):
        b = a
        for _ in range(number):
            b = a @ b
        return b

    return Part("matrix products", lambda: jax.block_until_ready(products(a)), 2 * number * side**3)


def _theirs(checkout: str, spec: UNetSpec, ours: list[Part], dtype: str, batch: int, size: int) -> list[Part]:
    """The reference implementation on the same kind of device; it does the same work."""
    model = pytorch_unet("--reference", checkout, spec).eval()
    import torch
    from guided_diffusion.nn import timestep_embedding

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = model.to(memory_format=torch.channels_last)

    def images(number: int) -> tuple[Any, ...]:
        x = torch.rand(number, 3, size, size, device=device) * 2 - 1
        labels = None if spec.num_classes is None else torch.zeros(number, dtype=torch.long, device=device)
        return x.to(memory_format=torch.channels_last), torch.full((number,), 500, device=device), labels

    both, once = images(2 * batch), images(batch)

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

    rows = [Part("PyTorch: encoder, channels last", timed(encode), ours[0].flops)]
    if len(ours) > 1:
        rows.append(Part("PyTorch: whole U-Net, twice", timed(twice), ours[1].flops))
    return rows


def table(measured: Measured) -> str:
    """The rows in columns, under a line on the device and one on the peak."""
    batch, size, turns = measured.batch, measured.size, len(measured.rows[0].seconds)
    titles = ("images/s", "GFLOP/image", "GFLOP/s", "of peak", "memory", "time/first")
    lines = [
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {measured.dtype}, {batch} × {size}×{size}",
        f"measured matrix peak {measured.peak / 1e9:,.0f} GFLOP/s; medians of {turns} turns",
        f"{'':34}" + "".join(f"{title:>12}" for title in titles),
    ]
    for row in measured.rows:
        rate = row.flops / row.median
        memory = f"{row.memory / 2**20:,.0f} MiB" if row.memory else "-"
        lines.append(
            f"{row.name:34}{batch / row.median:12,.2f}{row.flops / batch / 1e9:12,.1f}"
            f"{rate / 1e9:12,.0f}{rate / measured.peak:12.1%}{memory:>12}{measured.ratio(row):12.2f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    options = flags.FLAGS
    measured = measure(
        weights=options.weights,
        preset=options.preset,
        size=options.size,
        batch=options.batch_size,
        turns=options.turns,
        dtype=options.dtype,
        whole=options.whole,
        reference=options.reference,
    )
    print(table(measured))


if __name__ == "__main__":
    flags.DEFINE_string("weights", "", "Shipped name or folder of a diffusion model; empty: random.")
    flags.DEFINE_enum("preset", "256x256_diffusion_uncond", list(PRESETS), "Architecture if random.")
    flags.DEFINE_integer("size", 128, "Side of the images, in pixels.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 1, "Images in a call.", lower_bound=1)
    flags.DEFINE_enum(
        "dtype", "auto", ["auto", "float32", "bfloat16"], "Precision; auto: bfloat16 on GPU and TPU."
    )
    flags.DEFINE_integer("turns", 10, "Times that each row is measured.", lower_bound=1)
    flags.DEFINE_bool("whole", True, "Measure the whole U-Net too.")
    flags.DEFINE_string("reference", "", "Checkout of openai/guided-diffusion, to compare with.")
    run(main)
