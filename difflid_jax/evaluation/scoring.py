"""One method on one data set: every image is restored and scored once, by any number of processes.

Training calls `evaluate` on its validation images, the programs on test sets. The mean is over images, never
a mean of batch means (unless the protocol says so), and correctly rounded (`math.fsum`): it depends neither
on the order of the images nor on the number of processes.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from difflid_jax.backbones.inception import CHANNELS, Inception
from difflid_jax.metrics import protocols
from difflid_jax.metrics.fid import FeatureStatistics, frechet_distance
from difflid_jax.metrics.measure import measure_all, prepare
from difflid_jax.parallel import bytes_of_all_processes

Restore = Callable[[np.ndarray], Any]


class Images(Protocol):
    """This process's share of a data set, as `data.pipeline.Evaluation` gives it.

    Iteration yields {'name', 'index', 'hazy', 'clean'}, the images uint8 (H,W,3) of one size; `total` counts
    the images of all processes, whose indices are 0 … total - 1.
    """

    @property
    def total(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class Result:
    """Scores of one method on one data set.

    images: {'name': …, 'psnr': …, 'ssim': …, 'worse': …} (and 'lpips') of every image, in the data set's
        order. 'worse' is 1 if the restored image is further from the ground truth (squared error of RGB) than
        the hazy one, else 0; its mean is the share of images made worse.
    mean: of each metric; also 'fid', one number for the whole set, if it was requested. An image that equals
        its ground truth has an infinite PSNR, which the mean leaves out unless all are infinite.
    seconds: mean time to restore an image, without the calls that compiled for a new size; None if there were
        no others.
    spread: standard deviation of each mean over seeds of the noise; empty for a single seed.
    """

    method: str
    protocol: str
    images: tuple[dict[str, Any], ...]
    mean: dict[str, float]
    seconds: float | None
    spread: dict[str, float] = field(default_factory=dict)

    @property
    def equal(self) -> int:
        """The number of images with an infinite PSNR."""
        return sum(image["psnr"] == math.inf for image in self.images)

    def ranked(self) -> list[int]:
        """Indices of the images from the worst to the best PSNR."""
        return sorted(range(len(self.images)), key=lambda i: self.images[i]["psnr"])


def evaluate(
    restore: Restore,
    images: Images,
    *,
    method: str,
    protocol: str = "paper",
    lpips: Callable | None = None,
    inception: Inception | None = None,
    batch_size: int = 1,
    warm_up: bool = False,
    seed: int = 0,
    restores: bool = True,
    watch: Callable[[int, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    progress: bool = True,
) -> Result:
    """Restore and score every image; all processes must call it, and all get the same result.

    Args:
        restore: hazy float32 (H,W,3) in [0,1] → restored float of the same shape (clamped when scored).
        method: its name in the result and on the progress bar.
        protocol: a name of `metrics.protocols.PROTOCOLS`.
        lpips: a `metrics.lpips.Lpips`, or None to leave LPIPS out.
        inception: the features of the FID between the restored and the clean images, or None.
        batch_size: images of equal size that are scored (not restored) together.
        warm_up: restore an image of every new size once before the call that is timed.
        seed: of the crops, for a protocol that crops.
        restores: False for images restored elsewhere, which `restore` returns: there is no hazy image to
            compare with, so 'worse' is left out.
        watch: called with (index, hazy, restored, clean), float32 (H,W,3), of every image of this process.

    Raises: ValueError or OSError, in every process alike, if an image cannot be read, restored or scored
        (the message names it), or if the data set is empty.
    """
    protocol = protocols.find_protocol(protocol)
    if not images.total:
        raise ValueError("there are no images to score")
    share = _Share(restore, method, protocol, inception, warm_up, seed, restores, watch)
    rows, trouble = [], None
    try:
        rows = share.run(images, lpips, batch_size, progress)
    except (ValueError, OSError) as error:
        # The other processes wait for this one's scores: they receive the error, and all raise it.
        trouble = error
    mine = json.dumps({"rows": rows, "trouble": str(trouble or "")}).encode()
    shares = [json.loads(their) for their in bytes_of_all_processes(mine)]
    if trouble is not None:
        raise trouble
    if elsewhere := [their["trouble"] for their in shares if their["trouble"]]:
        raise ValueError(elsewhere[0])
    result = _merged(method, protocol, [row for their in shares for row in their["rows"]], images.total)
    if inception is not None:
        result.mean["fid"] = frechet_distance(*(sums.of_all_processes() for sums in share.features))
    return result


def over_seeds(results: Sequence[Result]) -> Result:
    """One result of several seeds: means over them, and how much each mean varies (`spread`).

    Every image also gets 'psnr_std', the standard deviation of its PSNR over the seeds.
    """
    if len(results) == 1:
        return results[0]
    images = []
    for of_one in zip(*(result.images for result in results), strict=True):
        values = {m: [scores[m] for scores in of_one] for m in of_one[0] if m != "name"}
        row = {"name": of_one[0]["name"]} | {m: statistics.fmean(v) for m, v in values.items()}
        images.append(row | {"psnr_std": _deviation(values["psnr"])})
    means = {metric: [result.mean[metric] for result in results] for metric in results[0].mean}
    timed = [result.seconds for result in results if result.seconds is not None]
    return replace(
        results[0],
        images=tuple(images),
        mean={metric: statistics.fmean(values) for metric, values in means.items()},
        spread={metric: _deviation(values) for metric, values in means.items()},
        seconds=statistics.fmean(timed) if timed else None,
    )


class _Share:
    """This process's share of the images, restored by the method and scored."""

    def __init__(self, restore, method, protocol, inception, warm_up, seed, restores, watch):
        self.restore, self.method, self.protocol = restore, method, protocol
        self.warm_up, self.seed, self.restores, self.watch = warm_up, seed, restores, watch
        self.inception = inception
        empty = FeatureStatistics(0, np.zeros(CHANNELS), np.zeros((CHANNELS, CHANNELS)))
        self.features = [empty, empty]  # of the restored and the clean images
        self.rows: list[dict[str, Any]] = []
        self.sizes: set[tuple[int, ...]] = set()

    def run(self, images: Images, lpips, batch_size: int, progress: bool) -> list[dict[str, Any]]:
        quiet = not progress or jax.process_index() > 0
        bar = tqdm(images, self.method, len(images), unit="image", file=sys.stderr, disable=quiet)
        stream = (self._restored(image) for image in bar)
        scores = measure_all(stream, self.protocol, batch_size=batch_size, lpips=lpips)
        return [row | {"scores": scores[row["key"]] | row["scores"]} for row in self.rows]

    def _restored(self, image: Mapping[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
        index, name = int(image["index"]), f"{self.method}, image {image['name']!r}"
        hazy, clean = (image[role].astype(np.float32) / 255 for role in ("hazy", "clean"))
        if self.protocol.crop:
            hazy, clean = _random_crop((hazy, clean), self.protocol.crop, (self.seed, index), name)
        cold = hazy.shape not in self.sizes
        self.sizes.add(hazy.shape)
        try:
            if cold and self.warm_up:
                self.restore(hazy)
                cold = False
            start = time.perf_counter()
            restored = np.asarray(self.restore(hazy))
            seconds = time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            height, width = hazy.shape[:2]
            raise ValueError(
                f"{name}: {width}×{height} pixels need more memory than this device has; restore in tiles "
                "(evaluate --tile=auto) or use a larger device"
            ) from error
        restored = _checked(restored, clean.shape, name)
        key = f"{image['name']} (number {index})"
        row = {"index": index, "name": image["name"], "key": key, "seconds": seconds, "cold": cold}
        row["scores"] = {}
        self.rows.append(row)
        prepared = np.asarray(prepare(restored[None], clean[None], self.protocol))
        if self.restores:
            untouched = prepare(hazy[None], clean[None], self.protocol)
            worse = _squared_error(prepared, clean) > _squared_error(untouched, clean)
            row["scores"]["worse"] = float(worse)
        if self.inception is not None:
            both = np.concatenate([prepared, clean[None]])
            added = (FeatureStatistics.of(features[None]) for features in self.inception(both))
            self.features = [sums + more for sums, more in zip(self.features, added, strict=True)]
        if self.watch:
            self.watch(index, hazy, restored, clean)
        return key, prepared[0], clean


def _squared_error(prepared: Any, clean: np.ndarray) -> float:
    return float(np.square(np.asarray(prepared, np.float64) - clean).mean())


def _checked(restored: np.ndarray, shape: tuple[int, ...], name: str) -> Float[np.ndarray, "h w 3"]:
    """A restored image as float32. Raises ValueError unless it is finite floats of this shape."""
    floats = jnp.issubdtype(restored.dtype, jnp.floating)
    if restored.shape != shape or not floats or not np.isfinite(restored).all():
        wrong = f", {np.count_nonzero(~np.isfinite(restored)):,} values not finite" if floats else ""
        raise ValueError(
            f"{name}: expected finite floats of shape {shape}, found {restored.dtype} of shape "
            f"{restored.shape}{wrong}"
        )
    return restored.astype(np.float32)


def _random_crop(
    pair: Sequence[np.ndarray], side: int, seed: Sequence[int], name: str
) -> tuple[np.ndarray, ...]:
    height, width = pair[0].shape[:2]
    if min(height, width) < side:
        raise ValueError(f"{name}: the protocol crops {side}×{side} pixels, found {width}×{height}")
    rng = np.random.default_rng(seed)
    step = -1 if rng.integers(2) else 1
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return tuple(x[top : top + side, left : left + side][:, ::step] for x in pair)


def _merged(method: str, protocol: protocols.Protocol, rows: list[dict], total: int) -> Result:
    rows.sort(key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(total)):
        raise RuntimeError(f"{len(rows)} scores for {total} images: some were scored twice or never")
    scores = [row["scores"] for row in rows]
    warm = [row["seconds"] for row in rows if not row["cold"]]
    images = tuple({"name": row["name"], **row["scores"]} for row in rows)
    return Result(method, protocol.name, images, _means(scores, protocol), _mean(warm) if warm else None)


def _means(scores: Sequence[Mapping[str, float]], protocol: protocols.Protocol) -> dict[str, float]:
    columns = {metric: [row[metric] for row in scores] for metric in scores[0]}
    if protocol.batch:
        columns = {metric: _of_batches(metric, x, protocol.batch) for metric, x in columns.items()}
    finite = [value for value in columns["psnr"] if value != math.inf]
    columns["psnr"] = finite or columns["psnr"]
    return {metric: _mean(values) for metric, values in columns.items()}


def _of_batches(metric: str, values: Sequence[float], size: int) -> list[float]:
    """The score of every `size` consecutive images; for PSNR, that of their joint squared error."""
    batches = [values[first : first + size] for first in range(0, len(values), size)]
    if metric != "psnr":
        return [_mean(batch) for batch in batches]
    errors = (_mean([10 ** (-value / 10) for value in batch]) for batch in batches)
    return [-10 * math.log10(error) if error else math.inf for error in errors]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if all(map(math.isfinite, values)) else 0.0
