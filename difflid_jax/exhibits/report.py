"""Scores of the runs of an exhibit, collected into a Markdown page, a CSV and, for Fig. 8, a plot."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difflid_jax.atomic import write_text
from difflid_jax.exhibits import published
from difflid_jax.exhibits.files import new_figure, save_figure, write_csv
from difflid_jax.exhibits.runs import Run, reference, rows
from difflid_jax.weights import store

METRICS = ("psnr", "ssim", "lpips")


@dataclass(frozen=True)
class Outcome:
    """A finished run: its test scores by metric, and the SHA-256 of its weights."""

    run: Run
    scores: dict[str, float]
    sha256: str


def collect(workdir: Path, runs: Sequence[Run]) -> list[Outcome]:
    """The outcomes of the finished runs, whose weights contain test scores."""
    found = []
    for run in runs:
        folder = workdir / run.folder / "weights"
        if not (folder / store.FILE).is_file():
            continue
        weights = store.read(folder, "restorer")
        if scores := weights.metadata.get("scores"):
            found.append(Outcome(run, {m: scores[m] for m in METRICS if m in scores}, weights.sha256))
    return found


def page(exhibit: str, budget: str, planned: Sequence[Run], outcomes: Sequence[Outcome]) -> str:
    """The table of an exhibit: our scores over seeds, the paper's, and both relative to the reference row."""
    lines = [f"# {exhibit}, {budget} budget: {len(outcomes)} of {len(planned)} runs finished", ""]
    columns = list(dict.fromkeys(run.column for run in planned))
    # Methods of others stand beside ours with the paper's numbers alone.
    shown = list(dict.fromkeys([*rows(exhibit), *published.rows(exhibit)]))
    for column in columns:
        full = reference(exhibit)
        lines += [f"## {column}", "", _HEADER.format(full, full), _RULE]
        ours = {row: _values(outcomes, row, column, "psnr") for row in shown}
        for row in shown:
            others = [_spread(_values(outcomes, row, column, metric), 3) for metric in METRICS[1:]]
            paper = published.psnr(exhibit, row, _paper_column(column))
            paper_reference = published.psnr(exhibit, full, _paper_column(column))
            cells = [
                row,
                str(len(ours[row])),
                _spread(ours[row], 2),
                *others,
                _difference(_mean(ours[row]), _mean(ours[full])),
                "" if paper is None else f"{paper:.2f}",
                _difference(_mean(ours[row]), paper),
                _difference(paper, paper_reference),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    if budget == "laptop":
        lines += [_LAPTOP_NOTE, ""]
    lines += ["Weights (SHA-256, first 12 digits):", ""]
    lines += [f"- {outcome.run.folder}: {outcome.sha256[:12]}" for outcome in outcomes]
    return "\n".join(lines) + "\n"


def write(
    folder: Path, exhibit: str, budget: str, planned: Sequence[Run], outcomes: Sequence[Outcome]
) -> Path:
    """Write <exhibit>.md and .csv (and figure8.png) into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{exhibit}.md"
    write_text(path, page(exhibit, budget, planned, outcomes))
    lines = []
    for outcome in outcomes:
        run, scores = outcome.run, map(outcome.scores.get, METRICS)
        lines.append((exhibit, budget, run.column, run.row, run.seed, *scores, outcome.sha256))
    header = ["exhibit", "budget", "column", "row", "seed", *METRICS, "sha256"]
    write_csv(folder / f"{exhibit}.csv", header, lines)
    if exhibit == "figure8" and outcomes:
        _plot(folder / "figure8.png", outcomes)
    return path


_HEADER = "| row | seeds | PSNR, dB | SSIM | LPIPS | to `{}` | paper, dB | ours to it | its own to `{}` |"
_RULE = "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
_LAPTOP_NOTE = (
    "The paper's numbers are for its own data, prior and 8.63 M parameters; at laptop scale only the "
    "differences between rows can be compared with it."
)


def _paper_column(column: str) -> str:
    """The paper's column that a laptop column stands for."""
    return "sots" if column == "nyu" else column


def _values(outcomes: Sequence[Outcome], row: str, column: str, metric: str) -> list[float]:
    return [
        outcome.scores[metric]
        for outcome in outcomes
        if (outcome.run.row, outcome.run.column) == (row, column) and metric in outcome.scores
    ]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float], digits: int) -> str:
    """mean ± sample standard deviation; of one value no deviation, of none ''."""
    if not values:
        return ""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _difference(value: float | None, reference: float | None) -> str:
    return "" if value is None or reference is None else f"{value - reference:+.2f}"


def _plot(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Fig. 8: PSNR over t1 with t2 = 500, and over t2 with t1 = 0."""
    figure = new_figure(8, 3)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, fixed, other in ((axes[0], "t₁", 1, 500), (axes[1], "t₂", 0, 0)):
        points: dict[int, list[float]] = {}
        for outcome in outcomes:
            times = tuple(map(int, outcome.run.row.split(",")))
            if times[fixed] == other:
                points.setdefault(times[1 - fixed], []).append(outcome.scores["psnr"])
        at = sorted(points)
        axis.plot(at, [statistics.fmean(points[t]) for t in at], "o-")
        axis.set_xlabel(f"{name}  (other: {other})")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR, dB")
    save_figure(figure, path, dpi=120)
