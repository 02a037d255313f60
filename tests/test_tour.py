"""The notebook docs/tour.ipynb runs from top to bottom, and what it trains is better than nothing."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    import nbformat

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS")  # of the tests, which make programs slow
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type in ("display_data", "execute_result")
    ]
    assert sum("image/jpeg" in data for data in shown) == 4
    (table,) = [data["text/markdown"] for data in shown if "text/markdown" in data]
    psnr = {name: float(value) for name, value in re.findall(r"\| (\w+) +\| +([\d.]+) \|", table)}
    assert psnr["difflid"] > psnr["identity"] + 2
