"""The results table: every method on every data set, as Markdown and JSON, by one command.

    python scripts/results.py --output=results/results.json \
        --data="SOTS indoor=sots_indoor:/data/SOTS/indoor" --data="I-HAZE=folders:/data/I-HAZE" \
        --data="photographs=photographs:" \
        --weights=weights/aod_net,weights/dehazenet,haze,"random U-Net=runs/random/weights"

Each --data is TITLE=WHAT:PATH; WHAT is a layout of data/layouts.py or, for the demo's photographs made
hazy, `photographs`. A row for the hazy input, the dark channel prior and each of the weights. Time per image
is warm (a picture of every size is restored once before), one picture at a time, with everything from pixels
to pixels in it; compare it only within one table.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
from absl import flags

from difflid_jax.cli import UsageError, run, use_compilation_cache
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.evaluation import tables as report
from difflid_jax.evaluation.methods import Method, load_methods
from difflid_jax.evaluation.scoring import Result, evaluate
from difflid_jax.evaluation.test_sets import TestSet, open_test_set
from difflid_jax.metrics.lpips import Lpips
from difflid_jax.metrics.protocols import PROTOCOLS


def parse(text: str) -> tuple[str, str, str]:
    """'TITLE=WHAT:PATH' → (title, what, path). Raises: ValueError for another form."""
    title, _, where = text.partition("=")
    what, colon, root = where.partition(":")
    if not title or not colon or what not in (*LAYOUTS, "photographs"):
        raise ValueError(
            f"--data: expected TITLE=WHAT:PATH, found {text!r}; WHAT is photographs or {', '.join(LAYOUTS)}"
        )
    return title, what, root


def open_set(what: str, root: str, *, allow_missing: bool) -> TestSet:
    if what == "photographs":
        return open_test_set(root, source=what)
    return open_test_set(root, what, allow_missing=allow_missing)


def _evaluated(method: Method, title: str, test: TestSet, protocol: str, lpips: Lpips) -> Result:
    result = evaluate(
        method.restore,
        test.pictures,
        method=f"{title}, {method.name}",
        protocol=protocol,
        lpips=lpips,
        warm_up=True,
    )
    return replace(result, method=method.name)


def main(argv: Sequence[str]) -> int:
    options = flags.FLAGS
    if len(argv) > 1 or not options.data or not options.output.endswith(".json"):
        raise UsageError("give --data=TITLE=WHAT:PATH (one or more) and --output=FILE.json, see --help")
    use_compilation_cache()
    named = [parse(text) for text in options.data]
    methods = load_methods(["identity", "dark_channel_prior"]) + load_methods(
        [], options.weights, tile=options.tile
    )
    sets = [(title, open_set(*where, allow_missing=options.allow_missing)) for title, *where in named]
    lpips = Lpips("alex")
    sections, entries = [], []
    for title, test in sets:
        scored = [(method, _evaluated(method, title, test, options.protocol, lpips)) for method in methods]
        caption = report.caption(options.protocol, test, "alex")
        sections.append(f"## {title}\n\n{report.table(scored, costs=True)}\n\n{caption}")
        entries.append({"title": title, **report.document(scored, test, "alex")})
    text = "\n\n".join(sections) + f"\n\nSeconds on {report.device()}, one picture at a time.\n"
    if jax.process_index() == 0:
        print(text)
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(output.with_suffix(".md"), text)
        report.write_json(output, {"sets": entries, **report.circumstances()})
    return 1 if any(test.left_out for _, test in sets) else 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("data", [], "TITLE=WHAT:PATH of a data set; may be given several times.")
    flags.DEFINE_list("weights", ["haze"], "A row each: shipped names, folders or LABEL=FOLDER.")
    flags.DEFINE_string(
        "tile", "off", "Restore in tiles: off, auto (as `restore` does) or their side in pixels."
    )
    flags.DEFINE_enum("protocol", "paper", list(PROTOCOLS), "How a pair is scored.")
    flags.DEFINE_string("output", "", "FILE.json; the Markdown goes to FILE.md.")
    flags.DEFINE_bool("allow_missing", False, "Score what is there of sets that are not whole, and say so.")
    run(main)
