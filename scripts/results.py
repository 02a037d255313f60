"""The results table: every method on every data set, as Markdown and JSON, with one command.

    python scripts/results.py --output=results/results.json \
        --data="SOTS indoor=sots_indoor:/data/SOTS/indoor" --data="I-HAZE=folders:/data/I-HAZE" \
        --data="photographs=photographs:" \
        --weights=weights/aod_net,weights/dehazenet,haze,"random U-Net=runs/random/weights"

Each --data is TITLE=WHAT:PATH; WHAT is a layout of data/pairing/layouts.py or, for the demo's photographs
made hazy, `photographs`. The rows are the hazy input, the dark channel prior and each of the weights. Time
per image is warm (an image of every size is restored once before), one image at a time, from pixels to
pixels; compare it only within one table.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from absl import flags

from difflid_jax.cli import UsageError, definer, refuse_arguments, refuse_existing, run, use_compilation_cache
from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.metrics.protocols import PROTOCOLS


def parse(text: str) -> tuple[str, str, str]:
    """'TITLE=WHAT:PATH' → (title, what, path). Raises ValueError for another form."""
    title, _, where = text.partition("=")
    what, colon, root = where.partition(":")
    if not title or not colon or what not in (*LAYOUTS, "photographs"):
        raise ValueError(
            f"--data: expected TITLE=WHAT:PATH, found {text!r}; WHAT is photographs or {', '.join(LAYOUTS)}"
        )
    return title, what, root


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> int:
    refuse_arguments(argv)
    use_compilation_cache()
    if not options.data or not options.output.endswith(".json"):
        raise UsageError("give --data=TITLE=WHAT:PATH (one or more) and --output=FILE.json, see --help")
    named = [parse(text) for text in options.data]
    output = Path(options.output)
    for path in (output, output.with_suffix(".md")):
        refuse_existing(path, options.overwrite)

    import jax

    from difflid_jax.atomic import write_text
    from difflid_jax.evaluation import tables
    from difflid_jax.evaluation.methods import load_methods
    from difflid_jax.evaluation.scoring import evaluate
    from difflid_jax.evaluation.test_sets import open_test_set
    from difflid_jax.metrics.lpips import Lpips

    methods = load_methods(["identity", "dark_channel_prior"])
    methods += load_methods([], options.weights, tile=options.tile)
    sets = []
    for title, what, root in named:
        if what == "photographs":
            sets.append((title, open_test_set(root, source=what)))
        else:
            sets.append((title, open_test_set(root, what, allow_missing=options.allow_missing)))
    measures = {"protocol": options.protocol, "lpips": Lpips("alex"), "warm_up": True}
    sections, entries = [], []
    for title, test in sets:
        scored = []
        for method in methods:
            result = evaluate(method.restore, test.images, method=f"{title}, {method.name}", **measures)
            scored.append((method, replace(result, method=method.name)))
        caption = tables.caption(scored, test, "alex")
        sections.append(f"## {title}\n\n{tables.table(scored, costs=True)}\n\n{caption}")
        entries.append({"title": title, **tables.document(scored, test, "alex")})
    text = "\n\n".join(sections) + f"\n\nSeconds on {tables.device()}, one image at a time.\n"
    if jax.process_index() == 0:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output.with_suffix(".md"), text)
        tables.write_json(output, {"sets": entries, **tables.circumstances()})
        print(text)
    return 1 if any(test.left_out for _, test in sets) else 0


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags on `values`."""
    define = definer(values)
    define("multi_string", "data", [], "TITLE=WHAT:PATH of a data set; may be given several times.")
    define("list", "weights", ["haze"], "Rows: shipped names, folders or LABEL=FOLDER.")
    define("string", "tile", "off", "Restore in tiles: off, auto (as `restore` does) or their side.")
    define("enum", "protocol", "paper", list(PROTOCOLS), "How a pair is scored.")
    define("path", "output", "", "FILE.json; the Markdown goes to FILE.md.")
    define("bool", "overwrite", False, "Replace existing files of --output.")
    define("bool", "allow_missing", False, "Score incomplete sets, and report what was left out.")


if __name__ == "__main__":
    run(main, define_flags)
