"""Check a data set before anything is trained or scored on it.

    python -m difflid_jax.check_data ROOT --dataset sots_indoor
    python -m difflid_jax.check_data ITS --dataset its --test SOTS/indoor

Prints what was found (pairs, sizes, what is missing, damaged, doubled), writes a sheet of pairs to look at,
and, with --test or where a set has both parts, looks for test images among the training ones.
ROOT is a folder that is or holds the set, "hazyDir|cleanDir", or a .txt file of "hazy|clean" lines.
Exit status: 0 whole; 1 something is wrong and named; 2 refused.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from difflid_jax.cli import run
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.data.pairing.leakage import find_leaks
from difflid_jax.data.pairing.pairs import Pair, Report, find_parts, load_pair
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet

_DATASET = flags.DEFINE_enum("dataset", "folders", list(LAYOUTS), "What the folder holds.")
_SPLIT = flags.DEFINE_enum("split", "", ["", "train", "test"], "Which part; empty: every part there is.")
_TEST = flags.DEFINE_string("test", "", "Another ROOT, whose images must not be among those of the first.")
_TEST_DATASET = flags.DEFINE_enum(
    "test_dataset", "", ["", *LAYOUTS], "What --test holds; empty: SOTS indoor for ITS, else the same set."
)
_QUICK = flags.DEFINE_bool("quick", False, "Read headers and file ends only instead of decoding images.")
_TFDS = flags.DEFINE_string("tfds", "", "Also write the set, if it is whole, as a TFDS data set under here.")
_FULL = flags.DEFINE_bool("full", False, "List every case instead of the first five of each kind.")
_SHEET = flags.DEFINE_string("sheet", "", "Where the sheet goes (default: pairs_DATASET.png; off: nowhere).")
_SHEET_PAIRS = flags.DEFINE_integer(
    "sheet_pairs", 8, "Pairs on the sheet, evenly over the set.", lower_bound=1
)


def sheet_of(parts: list[tuple[list[Pair], Report]], count: int):
    """A contact sheet (uint8) of up to `count` pairs spread evenly over all parts, or None without pairs."""
    pairs = [pair for found, _ in parts for pair in found]
    if not pairs:
        return None
    step = max(1, len(pairs) / count)
    rows, captions = [], []
    for pair in [pairs[int(index * step)] for index in range(min(count, len(pairs)))]:
        try:
            rows.append(list(load_pair(pair)))
        except ValueError:
            continue  # --quick lets damage in the middle of a file pass; the sheet is no place to report it
        captions.append([pair.hazy.name, pair.clean.name + (" (cropped)" if pair.crop else "")])
    return contact_sheet(rows, captions) if rows else None


def main(argv: Sequence[str]) -> int:
    if len(argv) != 2:
        raise ValueError(f"expected one ROOT, found {len(argv) - 1} (quote “hazyDir|cleanDir”)")
    thorough = not _QUICK.value
    parts = find_parts(argv[1], _DATASET.value, _SPLIT.value or None, thorough=thorough)
    if _TEST.value:
        dataset = _TEST_DATASET.value or ("sots_indoor" if _DATASET.value == "its" else _DATASET.value)
        parts = [part for part in parts if part[1].split != "test"] or parts
        tests = find_parts(_TEST.value, dataset, thorough=thorough)
        tests = [part for part in tests if part[1].split != "train"] or tests
        leaks = [leak for pairs, _ in parts for test, _ in tests for leak in find_leaks(pairs, test)]
        parts += tests
    elif len(parts) == 2:
        leaks = find_leaks(parts[0][0], parts[1][0], thorough=thorough)
    else:
        leaks = []
    for _, report in parts:
        print(report.text(None if _FULL.value else 5))
    for leak in leaks:
        print(f"LEAK: {leak.line(None if _FULL.value else 5)}")
    if _SHEET.value != "off":
        sheet = sheet_of(parts, _SHEET_PAIRS.value)
        if sheet is not None:
            print(f"Sheet: {write_png(Path(_SHEET.value or f'pairs_{_DATASET.value}.png'), sheet)}")
    whole = all(report.clean_bill for _, report in parts) and not leaks
    if not whole:
        print("Not whole: see above.")
        return 1
    if _TFDS.value:
        from difflid_jax.data.builders import build  # takes a second to import

        print(f"TFDS data set: {build(argv[1], _DATASET.value, _TFDS.value)}")
    warned = any(True for _, report in parts for _ in report.of("warning"))
    print("Usable; see the warnings." if warned else "Nothing is wrong.")
    return 0


if __name__ == "__main__":
    run(main)
