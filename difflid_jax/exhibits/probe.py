"""What every layer holds at every timestep: haze and content, measured by linear probes (Sec. 4.1)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from difflid_jax.evaluation import probes
from difflid_jax.exhibits.files import markdown_table, new_figure, save_figure, write_csv, write_page


class Cell(NamedTuple):
    """The measures of a layer at a timestep; None where β and A are not known.

    accuracy: of telling hazy from clean in unseen scenes (chance: 0.5). beta_r2, airlight_r2: R² of predicted
    β and A. retrieval: share of hazy images whose nearest clean image is their partner. ratio: distance of
    partners over that of scenes.
    """

    accuracy: float
    beta_r2: float | None
    airlight_r2: float | None
    retrieval: float
    ratio: float


_HEADINGS = Cell("hazy or clean", "R² of β", "R² of A", "retrieval", "distance ratio")
Table = Mapping[tuple[str, int], Cell]  # by layer and timestep


def measure(features: np.ndarray, pairs: probes.Pairs) -> Cell:
    """The measures of features (2,N,C) of the pairs; those of a guess if the features are all equal.

    They are equal in the output of a U-Net with random weights, whose last convolution starts at zero.
    """
    targets = (pairs.beta, pairs.airlight)
    if not np.ptp(features, (0, 1)).any():
        r2 = [None if y is None else 0.0 for y in targets]
        return Cell(0.5, *r2, 1 / features.shape[1], math.nan)
    within, between = probes.distances(features)
    r2 = [None if y is None else probes.regression_r2(features, y) for y in targets]
    return Cell(probes.probe_accuracy(features), *r2, probes.retrieval(features), within / between)


def layer_names(encoders: int, decoders: int) -> list[str]:
    """All layers in the order of the data."""
    return [
        *(f"encoder:{i}" for i in range(encoders)),
        "middle",
        *(f"decoder:{i}" for i in range(decoders)),
        "output",
    ]


def write(folder: Path, found: Mapping[str, Table], caption: str) -> str:
    """Write probe.md, probe.csv and probe.png (heat maps); returns the page.

    found: the tables of the prior and of its control, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = ["weights", "layer", "t", *Cell._fields]
    rows = [(name, *at, *cell) for name, table in found.items() for at, cell in table.items()]
    write_csv(folder / "probe.csv", header, rows)
    cells = [cell for table in found.values() for cell in table.values()]
    shown = [what for what in Cell._fields if all(getattr(cell, what) is not None for cell in cells)]
    _draw(found, shown, folder / "probe.png")
    return write_page(
        folder / "probe.md",
        "# Haze and content by layer and timestep",
        caption,
        *(text for what in shown for text in _section(found, what)),
        "![Each measure by layer and t](probe.png)",
    )


def _section(found: Mapping[str, Table], what: str) -> Iterator[str]:
    """The value at each layer's best timestep, and the h-space's at every timestep."""
    best = min if what == "ratio" else max
    layers, times = _axes(next(iter(found.values())))
    yield f"## {getattr(_HEADINGS, what)}"
    header = ["layer", *(f"{name}, best (t)" for name in found)]
    rows = []
    for layer in layers:
        values = [[(getattr(table[layer, t], what), t) for t in times] for table in found.values()]
        tops = [best(row, key=lambda pair: pair[0]) for row in values]
        rows.append((layer, *(f"{value:.3f} ({t})" for value, t in tops)))
    yield markdown_table(header, rows)
    if "middle" in layers:
        yield "The h-space over t:"
        over_t = [(t, *(getattr(table["middle", t], what) for table in found.values())) for t in times]
        yield markdown_table(["t", *found], over_t)


def _axes(table: Table) -> tuple[list[str], list[int]]:
    return list(dict.fromkeys(layer for layer, _ in table)), list(dict.fromkeys(t for _, t in table))


def _draw(found: Mapping[str, Table], shown: Sequence[str], path: Path) -> None:
    """Heat maps, layers down and t across: a row per weights, a column per measure, with one scale each."""
    layers, times = _axes(next(iter(found.values())))
    figure = new_figure(2.6 * len(shown), (0.16 * len(layers) + 0.6) * len(found))
    grid = figure.subplots(len(found), len(shown), squeeze=False)
    for column, what in enumerate(shown):
        values = [
            np.array([[getattr(table[layer, t], what) for t in times] for layer in layers], np.float32)
            for table in found.values()
        ]
        # R² far below 0 means no more than 0 does.
        low, high = max(np.nanmin(values), -0.2), np.nanmax(values)
        for row, (name, value) in enumerate(zip(found, values, strict=True)):
            axes = grid[row, column]
            image = axes.imshow(value, aspect="auto", vmin=low, vmax=high)
            axes.set_xticks(range(len(times)), times, fontsize=6)
            axes.set_yticks(range(len(layers)), layers if column == 0 else [], fontsize=6)
            axes.set_title(f"{getattr(_HEADINGS, what)}, {name}", fontsize=7)
            figure.colorbar(image, ax=axes).ax.tick_params(labelsize=6)
    save_figure(figure, path)
