"""Training crops per second and core: from image files, from the decoded cache, with haze.

    python scripts/benchmarks/input.py
    python scripts/benchmarks/input.py --data=/data/SOTS/indoor --dataset=sots_indoor

Without --data the pairs are made from photographs in installed packages, in RESIDE's size and format. CPU
seconds of one thread are counted, so that other programs on the machine matter little; only the last row is
wall time, of the iterator with its threads.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from PIL import Image

from difflid_jax.cli import run
from difflid_jax.data.photographs import photographs
from difflid_jax.data.pipeline import Batches, CropSpec, Evaluation
from difflid_jax.data.sources import DataSet, open_data
from difflid_jax.images.files import write_png

_DATA = flags.DEFINE_string("data", "", "Root of a data set of pairs; empty: pairs made from photographs.")
_DATASET = flags.DEFINE_string("dataset", "folders", "Its layout, a name of data/pairing/layouts.py.")
_CROP = flags.DEFINE_integer("crop", 128, "Side of the crops.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 40, "Crops in a batch.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Length of each measurement.", lower_bound=0.1)

_SIZE = (620, 460)
_PAIRS = 12


def main(argv: Sequence[str]) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        root = _DATA.value or _write_pairs(Path(temporary, "made"))
        cache = Path(temporary, "cache")
        files = open_data("folders", root, dataset=_DATASET.value, allow_missing=True)
        pairs = open_data("folders", root, dataset=_DATASET.value, allow_missing=True, cache=cache)
        hazed = open_data("photographs", "")
        per_core = {
            "decoding the files": _crops_per_core_second(files),
            "decoded cache": _crops_per_core_second(pairs),
            "in memory, haze made on the fly": _crops_per_core_second(hazed),
        }
        by_the_wall = _crops_per_second(pairs)
    slowest = per_core["decoding the files"]
    print(f"{len(files)} pairs, crops of {_CROP.value}, batches of {_BATCH.value}")
    print(f"{'':36}crops/s per core   ratio")
    for name, rate in per_core.items():
        print(f"{name:36}{rate:16,.0f}{rate / slowest:8.1f}")
    print(f"{'decoded cache, iterator, wall time':36}{by_the_wall:16,.0f}")


def _crops_per_core_second(data: DataSet) -> float:
    batches = Batches(data, CropSpec(_CROP.value), _BATCH.value)
    batches.make(0)
    number, start = 0, time.thread_time()
    while (spent := time.thread_time() - start) < _SECONDS.value:
        number += 1
        batches.make(number)
    return number * _BATCH.value / spent


def _crops_per_second(data: DataSet) -> float:
    batches = Batches(data, CropSpec(_CROP.value), _BATCH.value)
    for _ in range(10):
        next(batches)
    number, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS.value:
        number += 1
        next(batches)
    batches.close()
    return number * _BATCH.value / spent


def _write_pairs(root: Path) -> str:
    """Write pairs of 620×460 PNG files in hazy/ and gt/, each a different part of a photograph."""
    source = [Image.fromarray(clean) for split in ("train", "test") for _, clean, _ in photographs(split)]
    for folder in ("gt", "hazy"):
        (root / folder).mkdir(parents=True)
    for i in range(_PAIRS):
        image, inset = source[i % len(source)], 3 * (i // len(source))
        box = (inset, inset, image.width - inset, image.height - inset)
        clean = image.resize(_SIZE, Image.Resampling.BICUBIC, box)
        clean.save(root / "gt" / f"{i}.png")
    for image in Evaluation(open_data("photographs", root / "gt", progress=False)):
        write_png(root / "hazy" / f"{image['name']}.png", image["hazy"])
    return str(root)


if __name__ == "__main__":
    run(main)
