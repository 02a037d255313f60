"""Does the probe predict the training? Rank correlation of probes of frozen features with trained PSNR.

    python scripts/rank_correlation.py --probe=results/study/probe.csv --runs=runs/reproduce/figure8.csv
    python scripts/rank_correlation.py --probe=results/study/probe.csv --runs=runs/reproduce/table3.csv \
        --layer_e=7 --layer_d=2

--probe: from `difflid study probe` on the runs' prior, at their timesteps; --runs: from `difflid reproduce`,
for figure8 or table3. figure8 varies t₁ at t₂ = 500 and t₂ at t₁ = 0: each series is compared with the probes
of the h-space at the timestep that varies. table3 compares layers, each probed at t₁ and at t₂; rows without
layers of the prior (VGG-16, ResNet-50) are left out.

Prints Spearman's ρ between each probe and the mean PSNR over the seeds that all rows have. By chance, |ρ|
exceeds 0.9 for n = 5 points, or 0.79 for n = 7, in about one of twenty cases.
"""

import csv
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags
from scipy.stats import spearmanr

from difflid_jax.cli import UsageError, definer, run
from difflid_jax.exhibits.files import markdown_table
from difflid_jax.exhibits.probe import Cell
from difflid_jax.exhibits.runs import LAYERS

Place = tuple[str, int]  # layer and timestep
Series = list[tuple[Place, float]]  # where the features come from, and the PSNR that they led to


def read_probe(path: Path) -> dict[Place, dict[str, float]]:
    """The measures of the prior (not of its random control) by layer and timestep."""
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if not line["weights"].startswith("random")]
    return {
        (line["layer"], int(line["t"])): {what: float(line[what]) for what in Cell._fields if line[what]}
        for line in lines
    }


def read_psnr(path: Path) -> tuple[str, dict[str, float]]:
    """The exhibit, and the PSNR of its rows: the mean over the seeds that all rows have.

    A row with more seeds than another would differ from it by the seeds, too. Raises ValueError for a file
    without runs or without a common seed.
    """
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines:
        raise ValueError(f"{path}: no run is finished yet")
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        found.setdefault(line["row"], {})[line["seed"]] = float(line["psnr"])
    common = set.intersection(*map(set, found.values()))
    if not common:
        raise ValueError(f"{path}: no seed is finished in every row")
    return lines[0]["exhibit"], {
        row: statistics.fmean(values[seed] for seed in common) for row, values in found.items()
    }


def series(
    exhibit: str, psnr: Mapping[str, float], layers: Mapping[str, str]
) -> Iterator[tuple[str, Series]]:
    """What varies, and its points."""
    if exhibit == "figure8":
        times = {tuple(map(int, row.split(","))): value for row, value in psnr.items()}
        yield "t₁", [(("middle", a), value) for (a, b), value in times.items() if b == 500]
        yield "t₂", [(("middle", b), value) for (a, b), value in times.items() if a == 0]
    elif exhibit == "table3":
        for name, t in (("layer at t₁ = 0", 0), ("layer at t₂ = 500", 500)):
            yield name, [((layers[row], t), value) for row, value in psnr.items() if row in layers]
    else:
        raise UsageError(f"--runs: expected runs of figure8 or table3, found {exhibit}")


def table(probe: Mapping[Place, Mapping[str, float]], found: Iterator[tuple[str, Series]]) -> str:
    """Markdown: a row for what varies, a column for each probe. Raises ValueError for points not probed."""
    rows = []
    for name, points in found:
        if missing := [place for place, _ in points if place not in probe]:
            raise ValueError(
                f"--probe: no probe at {missing}; run `difflid study probe --times=…` with these"
            )
        psnr = [value for _, value in points]
        columns = ([probe[place].get(what) for place, _ in points] for what in Cell._fields)
        rows.append((name, len(points), *(_rho(x, psnr) for x in columns)))
    return markdown_table(["varied", "n", *Cell._fields], rows)


def _rho(x: Sequence[float | None], psnr: Sequence[float]) -> float | None:
    """Spearman's ρ; None if a probe is not known everywhere, or the same everywhere."""
    return None if None in x or len({*x}) == 1 else float(spearmanr(x, psnr)[0])


def main(argv: Sequence[str]) -> None:
    options = flags.FLAGS
    if len(argv) > 1 or not options.probe or not options.runs:
        raise UsageError("give --probe=FILE.csv and --runs=FILE.csv, see --help")
    exhibit, psnr = read_psnr(Path(options.runs))
    layers = {
        "layer_e": f"encoder:{options.layer_e}",
        "layer_d": f"decoder:{options.layer_d}",
        "h_space": "middle",
    }
    print(table(read_probe(Path(options.probe)), series(exhibit, psnr, layers)))


if __name__ == "__main__":
    define = definer()
    define("path", "probe", "", "probe.csv of `difflid study probe`.")
    define("path", "runs", "", "figure8.csv or table3.csv of `difflid reproduce`.")
    layers = LAYERS["laptop"]
    define("string", "layer_e", layers["layer_e"], "Index of table3's encoder block.")
    define("string", "layer_d", layers["layer_d"], "Index of table3's decoder block.")
    run(main)
