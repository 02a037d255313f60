"""Make a small validation set out of larger ones: their pairs at a fraction of the size, in one folder.

    python scripts/validation_set.py --output=V --set=sots_indoor=SOTS:2 --set=its=ITS --set=its=GREY:2

Each --set is DATASET=FOLDER, or DATASET=FOLDER:N for every Nth pair, sorted by name (choose an N that shares
no divisor with the pairs per scene, so that all haze levels occur). Writes V/hazy and V/clean, PNG pairs with
equal names, for --config.data.validation=V --config.data.validation_source=folders
--config.data.validation_dataset=folders. With --light=0.35,0.8 each pair, hazy and clean, is dimmed by a
factor from that range: rooms are darker than the photographs that data sets select.

Why smaller: restorers differ in how much haze they see, not in detail. On 40 pairs three restorers scored at
a quarter of 620×460 what they score there, within 0.1 dB, in a sixteenth of the time.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

from difflid_jax.cli import UsageError, definer, number_range, refuse_arguments, run
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.data.pairing.pairs import Pair, find_pairs, load_pair
from difflid_jax.data.pairing.report import check_or_raise
from difflid_jax.images.files import write_png


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test passes its own `values`."""
    define = definer(values)
    define("path", "output", None, "New folder for the pairs.")
    define("multi_string", "set", [], "DATASET=FOLDER, or DATASET=FOLDER:N for every Nth pair.")
    define("list", "light", ["1", "1"], "Range of the factor by which each pair is dimmed.")
    define("integer", "shrink", 4, "Factor by which the sides are shortened.", lower_bound=1)


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    refuse_arguments(argv)
    if not options.output or not options.set:
        raise UsageError("give --output=FOLDER and --set=DATASET=FOLDER, see --help")
    light = number_range(options.light, "light", 1e-3, 1)
    output = Path(options.output)
    if output.exists():
        raise UsageError(f"{output}: already exists; give another folder")
    pairs: dict[str, Pair] = {}
    for number, text in enumerate(options.set):
        for pair in chosen_pairs(text):
            name = f"{number}-{Path(pair.name).stem}.png"
            if pairs.setdefault(name, pair) is not pair:
                raise UsageError(f"{pairs[name].hazy} and {pair.hazy} would both become {name}; rename one")
    for name, pair in tqdm(pairs.items(), unit="pair"):
        factor = dimming(name, light)
        dimmed = [round(factor * value) for value in range(256)] * 3
        for folder, pixels in zip(("hazy", "clean"), load_pair(pair), strict=True):
            height, width = (max(1, side // options.shrink) for side in pixels.shape[:2])
            small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            (output / folder).mkdir(parents=True, exist_ok=True)
            write_png(output / folder / name, np.asarray(small.point(dimmed)))
    print(f"{output}: {len(pairs)} pairs")


def chosen_pairs(text: str) -> list[Pair]:
    """'DATASET=FOLDER[:N]' → its pairs. Raises: UsageError for another form, ValueError for a broken set."""
    dataset, equals, folder = text.partition("=")
    if not equals or dataset not in LAYOUTS:
        raise UsageError(f"--set: expected DATASET=FOLDER with one of {', '.join(LAYOUTS)}, found {text!r}")
    every = 1
    before, _, number = folder.rpartition(":")
    if number.isdecimal() and not Path(folder).exists():
        folder, every = before, int(number)
    if every < 1:
        raise UsageError(f"--set: expected N of 1 or more, found {text!r}")
    pairs, report = find_pairs(folder, dataset)
    check_or_raise(report, allow_missing=True)
    return sorted(pairs, key=lambda pair: pair.name)[::every]


def dimming(name: str, span: tuple[float, float]) -> float:
    """A factor from `span`, log-uniform and the same for every call with one name."""
    return math.exp(np.random.default_rng(zlib.crc32(name.encode())).uniform(*np.log(span)))


if __name__ == "__main__":
    run(main, define_flags)
