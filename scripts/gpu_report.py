"""Check and measure this package on a GPU or TPU, and write a report.

    python scripts/gpu_report.py --output=results/gpu

It needs nothing but this repository and an accelerator: the ImageNet-256 U-Net gets random weights, and the
images are those in installed packages. The stages, each a file in the output folder:

1. parity: the shipped restorer in float32 gives on this device what it gives on this machine's CPU;
2. checks: the h-space in bfloat16 agrees with float32; twenty steps at the paper's batch and crop lower the
   loss, skip no update and leave the frozen U-Net as it is; the same steps again, and ten and then ten, give
   the same parameters bit for bit (if a GPU's kernels add in no fixed order, set
   XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true);
3. step: the time of the paper's step and of its parts, with the network in float32 and in bfloat16, and of
   the h-space, against the aims for an H200;
4. restoring: images of 620×460 per second;
5. training: the demo, from images to weights.

A stage whose file exists is not run again, so the same command resumes an interrupted report; report.md
joins the files. Exit status 1: a check failed. --tiny uses the shipped prior and a small network, to try the
script on any device.

Wheels, if the machine has no index (Python 3.12, jax 0.11.2): jax, jaxlib, jax-cuda12-plugin, jax-cuda12-pjrt
and the nvidia-*-cu12 wheels that `pip download "jax[cuda12]==0.11.2"` names, and this package's dependencies
(`pip download -c constraints.txt .` without the pins of jax and jaxlib).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from absl import flags
from benchmarks import hspace
from benchmarks import train as whole_step
from gpu_checks import Checks

from difflid_jax.atomic import write_text
from difflid_jax.cli import UsageError, definer, refuse_arguments, run, use_compilation_cache
from difflid_jax.config import experiment as experiments
from difflid_jax.config import files, schema
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.photographs import photographs
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.tasks.restorer import train

_PRESET = "256x256_diffusion_uncond"
_FAILED = "**no**"
# Targets on an H200.
_STEP_SECONDS = 0.045  # of the paper's configuration, in the training loop
_SCHEDULE_HOURS = 5.5  # of its 1,200 epochs
_SHARE_OF_PEAK = 0.45  # of the h-space, of the measured matrix peak
_FASTER_THAN_WHOLE = 3.0  # h-space, than two passes of the whole U-Net
# Sums in another order; a TF32 product, with 11 bits, would be off by a hundred times as much.
_PARITY_TOLERANCE = 1e-4


def paper_experiment(tiny: bool) -> Experiment:
    """configs/sots.py on the photographs in installed packages; `tiny` is for trying the script."""
    config = schema.default()
    config.prior, config.data.source = "", "photographs"
    if tiny:
        config.prior, config.features.dtype = "photos64", "bfloat16"
        config.data.crop, config.data.batch_size = 32, 2 * jax.device_count()
        config.network.preset, config.network.widths = "", (8, 16)
    return experiments.resolve(config)


def _parity(experiment: Experiment, options) -> list[str]:
    """Restored images, in [0,1], of the shipped restorer on this device and on the CPU of its machine."""
    restorer = load_restorer(dtype="float32")
    hazy = _photograph(96, 128)

    def restored(device: jax.Device) -> np.ndarray:
        params, frozen = jax.device_put((restorer.params, restorer.frozen), device)
        with jax.default_device(device), jax.default_matmul_precision("float32"):
            return np.asarray(replace(restorer, params=params, frozen=frozen).restore_array(hazy))

    here, host = (restored(device) for device in (jax.devices()[0], jax.devices("cpu")[0]))
    error = float(np.linalg.norm(here - host) / np.linalg.norm(host))
    name = "restored image in float32 as on CPU"
    return _checked([(name, error < _PARITY_TOLERANCE, f"{error:.1e} relative")])


def _checks(experiment: Experiment, options) -> list[str]:
    return _checked(Checks(experiment, _PRESET).run())


def _step(experiment: Experiment, options) -> list[str]:
    h_space = hspace.measure(
        weights=experiment.prior,
        preset=_PRESET,
        size=experiment.crop.size,
        batch=experiment.batch_size,
        turns=options.steps,
    )
    lines = ["```", hspace.table(h_space), "```", ""]
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        measured = whole_step.measure(replace(experiment, network_dtype=dtype), _PRESET, options.steps)
        lines += [f"Step of configs/sots.py, network in {dtype}:", "", whole_step.table(measured), ""]
        seconds[dtype] = measured.in_loop
    return [*lines, *_aims(h_space, seconds)]


def _restoring(experiment: Experiment, options) -> list[str]:
    size = (46, 62) if options.tiny else (460, 620)
    restorer, photo = load_restorer(), (_photograph(*size) * 255).astype(np.uint8)
    restorer(photo)
    seconds = []
    for _ in range(options.steps):
        start = time.perf_counter()
        restorer(photo)
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds))
    return [f"{size[1]}×{size[0]}, one at a time: {1e3 * median:.1f} ms, {1 / median:.1f} images/s"]


def _training(experiment: Experiment, options) -> list[str]:
    config = files.load_config("demo")
    if options.tiny:
        config.training.steps, config.data.crop, config.data.batch_size = 4, 32, 2
        config.evaluation.lpips = False
    workdir = Path(options.output) / "demo"
    status = train(experiments.resolve(config), workdir)
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test = [row for row in log if row["kind"] == "test"]
    scores = {name: value for name, value in test[-1].items() if isinstance(value, float)} if test else {}
    found = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    return _checked([("the demo trains to its end", status == 0 and bool(test), found)])


_STAGES: dict[str, Callable[[Experiment, flags.FlagValues], list[str]]] = {
    "parity": _parity,
    "checks": _checks,
    "step": _step,
    "restoring": _restoring,
    "training": _training,
}


def _photograph(height: int, width: int) -> np.ndarray:
    """A part of a photograph of 741×500, float32 (H,W,3) in [0,1]."""
    return np.asarray(photographs("test")[0][1][:height, :width], np.float32) / 255


def _checked(rows: list[tuple[str, bool, str]]) -> list[str]:
    lines = [f"| {name} | {'yes' if holds else _FAILED} | {figure} |" for name, holds, figure in rows]
    return ["| check | holds | figure |", "|---|---|---|", *lines]


def _aims(h_space: hspace.Measured, seconds: dict[str, float]) -> list[str]:
    """A Markdown table of the targets; `seconds` of a step in the loop by the network's type."""
    faster = h_space.ratio(h_space.rows[1])
    rows = [
        (
            f"h-space at {100 * _SHARE_OF_PEAK:.0f} % of the measured matrix peak, or more",
            h_space.share_of_peak >= _SHARE_OF_PEAK,
            f"{100 * h_space.share_of_peak:.1f} %",
        ),
        (
            f"h-space {_FASTER_THAN_WHOLE:.0f} times as fast as the whole U-Net twice, or more",
            faster >= _FASTER_THAN_WHOLE,
            f"{faster:.2f} times",
        ),
    ]
    for dtype, step in seconds.items():
        hours = step * whole_step.PAPER_STEPS / 3600
        rows += [
            (
                f"step in the loop, network in {dtype}: {1e3 * _STEP_SECONDS:.0f} ms or less",
                step <= _STEP_SECONDS,
                f"{1e3 * step:.1f} ms",
            ),
            (
                f"whole schedule, network in {dtype}: under {_SCHEDULE_HOURS} hours",
                hours < _SCHEDULE_HOURS,
                f"{hours:.2f} hours",
            ),
        ]
    lines = ["| aim | reached | figure |", "|---|---|---|"]
    return lines + [f"| {aim} | {'yes' if held else 'no'} | {figure} |" for aim, held, figure in rows]


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    refuse_arguments(argv)
    if jax.default_backend() == "cpu" and not options.tiny:
        raise UsageError("no GPU or TPU found (JAX runs on the CPU); --tiny tries the script on any device")
    use_compilation_cache()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    experiment = paper_experiment(options.tiny)
    prior = experiment.prior or f"{_PRESET} with random weights"
    device = jax.devices()[0].device_kind
    parts = [f"# {jax.device_count()} × {device}", f"jax {jax.__version__}; frozen model: {prior}."]
    for number, (name, stage) in enumerate(_STAGES.items(), 1):
        part = output / f"{number}-{name}.md"
        if not part.exists():
            lines = stage(experiment, options)
            write_text(part, "\n".join([f"## {name.capitalize()}", "", *lines]))
        parts.append(part.read_text("utf-8"))
        write_text(output / "report.md", "\n\n".join(parts) + "\n")
    print((output / "report.md").read_text("utf-8"))
    return 1 if any(_FAILED in part for part in parts) else 0


if __name__ == "__main__":
    define = definer()
    define("path", "output", "results/gpu", "Folder of the report; an interrupted one is resumed.")
    define("integer", "steps", 50, "Times that each part is measured.", lower_bound=2)
    define("bool", "tiny", False, "A small network, on any device, to try the script itself.")
    run(main)
