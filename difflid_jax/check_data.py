"""Check a data set before training or scoring on it.

    python -m difflid_jax.check_data ROOT --dataset=sots_indoor
    python -m difflid_jax.check_data ITS --dataset=its --test=SOTS/indoor

Prints what was found (pairs, sizes, what is missing, damaged or duplicated) and writes a sheet of pairs to
look at. With --test, or if the set has both parts, it searches for test images in the training set.
ROOT is a folder that is or contains the set, "hazyDir|cleanDir", or a .txt file of "hazy|clean" lines.
Exit status: 0 complete; 1 problems were found and listed; 2 refused.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from difflid_jax.cli import UsageError, definer, expand_home, refuse_existing, run
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.data.pairing.leakage import find_leaks
from difflid_jax.data.pairing.pairs import Pair, Report, find_parts, load_pair
from difflid_jax.data.pairing.report import Finding
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet

Part = tuple[list[Pair], Report]


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; a test passes its own `values`."""
    define = definer(values)
    define("enum", "dataset", "folders", list(LAYOUTS), "Layout of the data set.")
    define("enum", "split", "", ["", "train", "test"], "Part to check; empty: every part found.")
    define("path", "test", "", "Another ROOT, which must not share images with the first.")
    define(
        "enum",
        "test_dataset",
        "",
        ["", *LAYOUTS],
        "Layout of --test; empty: sots_indoor for its, else that of --dataset.",
    )
    define(
        "bool",
        "quick",
        False,
        "Read only headers and file ends instead of decoding images; find only equal files in both sets.",
    )
    define("path", "tfds", "", "Folder under which a complete set is also written as a TFDS data set.")
    define("bool", "full", False, "List every case instead of the first five of each kind.")
    define("path", "sheet", "", "PNG of the sheet (empty: pairs_DATASET.png; off: none).")
    define("integer", "sheet_pairs", 8, "Pairs on the sheet, spread over the set.", lower_bound=1)
    define("bool", "overwrite", False, "Replace an existing sheet.")


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) != 2:
        raise UsageError(f"expected one ROOT, found {len(argv) - 1} (quote “hazyDir|cleanDir”)")
    root = expand_home(argv[1])
    sheet = None if options.sheet == "off" else Path(options.sheet or f"pairs_{options.dataset}.png")
    if sheet:
        refuse_existing(sheet, options.overwrite)
    parts, leaks = _find(root, options)
    shown = None if options.full else 5
    for _, report in parts:
        print(report.text(shown))
    for leak in leaks:
        print(f"LEAK: {leak.line(shown)}")
    image = sheet and sheet_of(parts, options.sheet_pairs)
    if image is not None:
        print(f"Sheet: {write_png(sheet, image)}")
    if leaks or not all(report.clean_bill for _, report in parts):
        print("Incomplete or damaged: see above.")
        return 1
    if options.tfds:
        from difflid_jax.data.builders import build  # takes a second to import

        print(f"TFDS data set: {build(root, options.dataset, options.tfds)}")
    warned = any(True for _, report in parts for _ in report.of("warning"))
    print("Usable; see the warnings." if warned else "No problems found.")
    return 0


def _find(root: str, options: flags.FlagValues) -> tuple[list[Part], list[Finding]]:
    """Every part of the set, and of --test, with the images that train and test share."""
    thorough = not options.quick
    parts = find_parts(root, options.dataset, options.split or None, thorough=thorough)
    if options.test:
        dataset = options.test_dataset or ("sots_indoor" if options.dataset == "its" else options.dataset)
        parts = [part for part in parts if part[1].split != "test"] or parts
        tests = find_parts(options.test, dataset, thorough=thorough)
        tests = [part for part in tests if part[1].split != "train"] or tests
        both = [(pairs, test) for pairs, _ in parts for test, _ in tests]
        return parts + tests, [leak for two in both for leak in find_leaks(*two, thorough=thorough)]
    if len(parts) == 2:
        return parts, find_leaks(parts[0][0], parts[1][0], thorough=thorough)
    return parts, []


def sheet_of(parts: Sequence[Part], count: int) -> np.ndarray | None:
    """A contact sheet, uint8 (H,W,3), of up to `count` pairs spread over all parts; None without pairs."""
    pairs = [pair for found, _ in parts for pair in found]
    rows, captions = [], []
    for index in range(min(count, len(pairs))):
        pair = pairs[int(index * max(1, len(pairs) / count))]
        try:
            rows.append(list(load_pair(pair)))
        except ValueError:
            continue  # --quick misses damage inside a file, and the sheet is not the place to report it
        captions.append([pair.hazy.name, pair.clean.name + (" (cropped)" if pair.crop else "")])
    return contact_sheet(rows, captions) if rows else None


if __name__ == "__main__":
    run(main, define_flags)
