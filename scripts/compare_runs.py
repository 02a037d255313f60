"""Compare the learning curves of runs: a figure, and a table of their spread over seeds.

    python scripts/compare_runs.py --output=results/rebuilt --run=full=runs/rebuilt/full-0 \
        --run=full=runs/rebuilt/full-1 --run=random=runs/rebuilt/random-0

Each --run is LABEL=WORKDIR; workdirs with the same label are seeds of one arm. Reads the evaluations in their
metrics.jsonl (kind `validation`), which may still grow, and writes OUTPUT.png and OUTPUT.md. For each arm
the table gives the mean over its seeds at the last step that all runs have reached, the standard deviation,
and each seed's value.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from difflid_jax.atomic import write_text
from difflid_jax.cli import UsageError, definer, run
from difflid_jax.exhibits.files import new_figure, save_figure
from difflid_jax.training.log import METRICS

Curve = dict[int, float]  # step → score


def read_curve(workdir: Path, metric: str) -> Curve:
    """The validation scores of a run. Raises ValueError if it has none."""
    lines = [json.loads(line) for line in (workdir / METRICS).read_text().splitlines()]
    curve = {line["step"]: line[metric] for line in lines if line["kind"] == "validation" and metric in line}
    if not curve:
        raise ValueError(
            f"{workdir / METRICS}: no validation {metric} yet; was config.data.validation given?"
        )
    return curve


def read_arms(runs: Sequence[str], metric: str) -> dict[str, list[Curve]]:
    """The curves of every label of LABEL=WORKDIR, … Raises ValueError for another form."""
    arms: dict[str, list[Curve]] = {}
    for text in runs:
        label, equals, workdir = text.partition("=")
        if not equals or not label or not workdir:
            raise ValueError(f"--run: expected LABEL=WORKDIR, found {text!r}")
        arms.setdefault(label, []).append(read_curve(Path(workdir), metric))
    return arms


def table(arms: dict[str, list[Curve]], metric: str) -> str:
    """Markdown: every arm at the last step that all runs share. Raises ValueError if they share none."""
    curves = [curve for seeds in arms.values() for curve in seeds]
    shared = set.intersection(*(set(curve) for curve in curves))
    if not shared:
        raise ValueError("--run: the runs have no evaluation at a common step")
    step = max(shared)
    lines = [f"| arm | {metric} at step {step:,} | spread over seeds | seeds |", "|---|---:|---:|---|"]
    for label, seeds in arms.items():
        values = [curve[step] for curve in seeds]
        spread = f"± {statistics.stdev(values):.3f}" if len(values) > 1 else "–"
        each = ", ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {label} | {statistics.mean(values):.3f} | {spread} | {each} |")
    return "\n".join(lines) + "\n"


def draw(arms: dict[str, list[Curve]], metric: str, path: Path) -> None:
    """Draw a line for each seed, in a colour for each arm."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    for number, (label, seeds) in enumerate(arms.items()):
        for i, curve in enumerate(seeds):
            steps = sorted(curve)
            axes.plot(steps, [curve[s] for s in steps], f"C{number}.-", label=label if i == 0 else None)
    axes.set(xlabel="step", ylabel=f"validation {metric}")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path, dpi=110)


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not options.run or not options.output:
        raise UsageError("give --run=LABEL=WORKDIR (one or more) and --output=NAME, see --help")
    arms = read_arms(options.run, options.metric)
    text = table(arms, options.metric)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    draw(arms, options.metric, output.with_name(f"{output.name}.png"))
    write_text(output.with_name(f"{output.name}.md"), text)
    print(text, end="")


if __name__ == "__main__":
    define = definer()
    define("multi_string", "run", [], "LABEL=WORKDIR; may be given several times.")
    define("string", "metric", "psnr", "Which score of the evaluations.")
    define("path", "output", "", "NAME of the files NAME.png and NAME.md.")
    run(main)
