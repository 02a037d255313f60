"""Small files of results: tables as CSV, Markdown pages, and plots, each written atomically."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from difflid_jax.atomic import atomic_write, write_text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV; floats get six digits after the point, None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{v:.6f}" if isinstance(v, float) else v for v in row] for row in rows)
    write_text(path, text.getvalue())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with numbers to the right; floats get three digits, None a dash."""

    def cell(value: Any) -> str:
        return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [header, *rows]
    text = [f"| {' | '.join(map(cell, line))} |" for line in lines]
    return "\n".join([text[0], "|" + "--:|" * len(header), *text[1:]])


def write_page(path: Path, *parts: str) -> str:
    """Write a Markdown page of paragraphs, headings, tables and images; returns it."""
    page = "\n\n".join(parts)
    write_text(path, page + "\n")
    return page


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches. Raises ValueError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("drawing takes matplotlib: pip install 'difflid_jax[figures]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path, dpi: int = 90) -> None:
    """Write a matplotlib figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
