"""How long restoring a photograph takes and how much memory, from 0.3 to 12 megapixels.

    python scripts/benchmark.py restore
    python scripts/benchmark.py restore --weights=runs/its --megapixels=0.3,2 --plain --deviation

For each size, `python -m difflid_jax.restore` restores a photograph in its own process, first with an
empty compilation cache (cold), then again (warm); peak memory is the larger of the two. "call" is the
least time of a call in a running process, "plain" that of the layers' plain forms, which accelerators run
(--plain), in place of the forms for this platform. The floors are what the matrix products and convolutions
of the plain forms and of the CPU's would take at the rate of one large matrix product, measured here.

--deviation: how far a large photograph restored in tiles, with features and gates from the working size, is
from the same restored in one piece with features at full size (mean and 99th percentile, of 255). It takes
much memory. Without --weights the shipped restorer is measured or, if none is shipped, one of --preset with
random weights.
"""

import dataclasses
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.extend.core import Jaxpr
from PIL import Image

from difflid_jax.cli import UsageError, refuse_arguments, run
from difflid_jax.data.photographs import photographs
from difflid_jax.features.build import build_features
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.layers.cpu import form
from difflid_jax.network.difflid import PRESETS, DiffLI2D, NetworkSpec
from difflid_jax.restoration import tiles
from difflid_jax.restoration.loading import load_restorer
from difflid_jax.restoration.restorer import Restorer
from difflid_jax.weights import store

_WEIGHTS = flags.DEFINE_string("weights", "", "Shipped name, folder or workdir of a restorer.")
_PRESET = flags.DEFINE_enum("preset", "slim", list(PRESETS), "Network if nothing is shipped.")
_SIZES = flags.DEFINE_list("megapixels", ["0.3", "2", "12"], "Sizes; 0.3 is 620×460, the others are 4:3.")
_TURNS = flags.DEFINE_integer("turns", 3, "Calls per size, at least.", lower_bound=1)
_PLAIN = flags.DEFINE_bool("plain", False, "Time the plain forms, too.")
_DEVIATION = flags.DEFINE_bool("deviation", False, "Measure the deviation of the working size, at 2 MP.")

# A size is called for at least this long.
_LEAST_SECONDS = 5


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    try:
        sizes = [_height_width(float(text)) for text in _SIZES.value]
    except ValueError as error:
        raise UsageError(f"--megapixels {','.join(_SIZES.value)}: expected numbers above 0") from error
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        weights = _weights(root / "weights")
        restorer = load_restorer(weights)
        print(f"{weights}: {restorer.parameters:,} parameters, {restorer.frozen_parameters:,} frozen")
        columns = ("cold", "warm", "call", "plain", "per MP", "floor", "CPU floor")
        print(f"{'size':>12}{'MP':>7}{''.join(f'{name:>11}' for name in columns)}{'peak':>12}")
        for size in sizes:
            _measure(restorer, weights, size, root / f"{size[0]}x{size[1]}")
        if _DEVIATION.value:
            _deviation(restorer, _height_width(2))


def _measure(restorer: Restorer, weights: str, size: tuple[int, int], folder: Path) -> None:
    photo = _photograph(size)
    folder.mkdir()
    Image.fromarray(photo).save(folder / "photo.jpg", quality=92)
    (cold, first), (warm, second) = (_program(weights, folder) for _ in range(2))
    forms = [None, "plain"] if _PLAIN.value else [None]
    for name in forms:
        with form(name):
            restorer(photo)
    # In turns, so that other work on the machine affects them alike.
    calls, rates = {name: [] for name in forms}, []
    while len(rates) < _TURNS.value or sum(calls[None]) < _LEAST_SECONDS:
        rates.append(_rate())
        for name in forms:
            with form(name):
                start = time.perf_counter()
                restorer(photo)
                calls[name].append(time.perf_counter() - start)
    megapixels, call = size[0] * size[1] / 1e6, min(calls[None])
    plain = min(calls.get("plain", [math.nan]))
    floors = []
    for name in ("plain", "cpu"):
        with form(name):
            floors.append(_flops(restorer, size) / max(rates))
    seconds = "".join(f"{x:>9.2f} s" for x in (cold, warm, call, plain, call / megapixels, *floors))
    peak = max(first, second) / 2**20
    print(f"{size[1]:>7}×{size[0]:<4}{megapixels:>7.2f}{seconds}{peak:>8,.0f} MiB", flush=True)


def _program(weights: str, folder: Path) -> tuple[float, int]:
    """(seconds, bytes at the peak) of the program for the photograph in `folder`, with its own cache."""
    command = [sys.executable, "-m", "difflid_jax.restore", str(folder / "photo.jpg"), "--overwrite"]
    command += [f"--output={folder / 'out'}", f"--weights={weights}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    spent = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UsageError(f"the program failed: {errors}")
    return spent, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _flops(restorer: Restorer, size: tuple[int, int]) -> float:
    """FLOP of one call: in one piece at its own size, or the view of the whole and each pixel once."""
    height, width = size

    def shape(rows: int, columns: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, rows, columns, 3), jnp.float32)

    def whole(x: jax.ShapeDtypeStruct) -> float:
        return _count(restorer.traced, restorer.params, restorer.frozen, x)

    if height * width <= tiles.WORKING_PIXELS:
        return whole(shape(height, width))
    programs = restorer.programs
    view = shape(*tiles.working_size(height, width, programs.geometry.common))
    key = jax.eval_shape(lambda: jax.random.key(0))
    maps = jax.eval_shape(programs.functions["see"], restorer.frozen, view, key)
    restore = programs.functions["restore"]
    _, gates = jax.eval_shape(lambda *x: restore(*x, None), restorer.params, view, maps)
    window = (jax.ShapeDtypeStruct((), jnp.float32),) * 4
    restore_tile = programs.functions["restore_tile"]
    of_tile = _count(restore_tile, restorer.params, shape(512, 512), maps, gates, window)
    return whole(view) + of_tile * height * width / 512**2


def _count(function: Callable, *arguments: Any) -> float:
    """FLOP of the matrix products and convolutions of `function`; loops count once per iteration."""
    return _operations(jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments).jaxpr)


def _operations(jaxpr: Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, outputs = equation.primitive.name, math.prod(equation.outvars[0].aval.shape)
        if name == "dot_general":
            left, (contracted, _) = equation.invars[0].aval.shape, equation.params["dimension_numbers"][0]
            total += 2 * outputs * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            total += 2 * outputs * math.prod(kernel) / kernel[layout[0]]
        elif name == "cond":
            total += max(_operations(branch.jaxpr) for branch in equation.params["branches"])
        else:
            inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
            turns = equation.params.get("length", 1) if name == "scan" else 1
            total += turns * sum(_operations(value) for value in inner if isinstance(value, Jaxpr))
    return total


def _rate() -> float:
    """FLOP/s of a matrix product of 2,048 rows and columns, the best of three (the first may compile it)."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def _deviation(restorer: Restorer, size: tuple[int, int]) -> None:
    for name, clean, _ in photographs("test"):
        photo = (
            np.asarray(Image.fromarray(clean).resize(size[::-1], Image.Resampling.LANCZOS), np.float32) / 255
        )
        hazy = 0.5 * photo + 0.45
        in_tiles = restorer(hazy)
        whole = dataclasses.replace(restorer, tile="off")(hazy)
        difference, change = np.abs(in_tiles - whole) * 255, np.abs(whole - hazy) * 255
        print(
            f"{name}, {size[1]}×{size[0]}: in tiles and in one piece differ by {difference.mean():.2f} in "
            f"the mean, {np.percentile(difference, 99):.2f} at 99 %; restoring changes it by "
            f"{change.mean():.2f}"
        )


def _weights(folder: Path) -> str:
    if _WEIGHTS.value or "haze" in store.shipped():
        return _WEIGHTS.value or "haze"
    features = HSpaceSpec(side=64)
    channels = build_features("h_space", "photos64", features).channels
    spec = NetworkSpec(widths=PRESETS[_PRESET.value], feature_channels=channels)
    network = nnx.eval_shape(lambda: DiffLI2D(spec, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in store.shapes_of(network).items()
    }
    store.save(folder, "restorer", tensors, spec.to_dict(), prior="photos64", features=features.to_dict())
    return str(folder)


def _height_width(megapixels: float) -> tuple[int, int]:
    if not megapixels > 0:
        raise ValueError(megapixels)
    if megapixels == 0.3:
        return 460, 620
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    return round(width * 3 / 4), width


def _photograph(size: tuple[int, int]) -> np.ndarray:
    """uint8 (H,W,3)"""
    _, clean, _ = photographs("test")[0]
    return np.asarray(Image.fromarray(clean).resize(size[::-1], Image.Resampling.BICUBIC))


if __name__ == "__main__":
    run(main)
