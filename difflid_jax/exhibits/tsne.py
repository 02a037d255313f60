"""Figs. 1 and 7: t-SNE of hazy and clean images, in h-space and in image space, over t."""

from collections.abc import Mapping, Sequence
from operator import truediv
from pathlib import Path

import numpy as np

from difflid_jax.evaluation.probes import distances
from difflid_jax.exhibits.files import markdown_table, new_figure, save_figure, write_csv, write_page

Space = Mapping[int, np.ndarray]  # {t: features (2,N,C)}, or points (2,N,2)


def write(
    folder: Path,
    features: Mapping[str, Space],
    points: Mapping[str, Space],
    names: Sequence[str],
    caption: str,
) -> str:
    """Write tsne.md, tsne.csv (every point) and tsne.png, a row per space; returns the page.

    features and points: of the same spaces, hazy and clean, by timestep. names: of the scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(
        folder / "tsne.csv",
        ["space", "t", "scene", "image", "x", "y"],
        [
            (space, t, name, image, float(x), float(y))
            for space, by_time in points.items()
            for t, both in by_time.items()
            for image, part in zip(("hazy", "clean"), both, strict=True)
            for name, (x, y) in zip(names, part, strict=True)
        ],
    )
    _draw(points, folder / "tsne.png")
    times = list(next(iter(features.values())))
    ratios = {space: [truediv(*distances(by_time[t])) for t in times] for space, by_time in features.items()}
    return write_page(
        folder / "tsne.md",
        "# Hazy and clean images in h-space and image space (Figs. 1 and 7)",
        caption,
        "Distance between the hazy and the clean image of a scene, over that between the clean images "
        "of two, before the projection:",
        markdown_table(["t", *ratios], zip(times, *ratios.values(), strict=True)),
        "![t-SNE; hazy orange, clean blue, partners joined](tsne.png)",
    )


def _draw(points: Mapping[str, Space], path: Path) -> None:
    """Points of hazy (orange) and clean (blue) images, partners joined; one column per t."""
    columns = max(map(len, points.values()))
    figure = new_figure(2.0 * columns, 2.1 * len(points))
    grid = figure.subplots(len(points), columns, squeeze=False)
    for row, (name, by_time) in zip(grid, points.items(), strict=True):
        for axes, (t, (hazy, clean)) in zip(row, by_time.items(), strict=True):
            axes.plot(*np.stack([hazy, clean]).transpose(2, 0, 1), color="0.85", linewidth=0.6, zorder=0)
            axes.scatter(*hazy.T, s=7, color="C1")
            axes.scatter(*clean.T, s=7, color="C0")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{name}, t = {t}", fontsize=9)
    save_figure(figure, path)
