"""One method over one data set: every picture is restored and scored once, however many processes share it.

Training calls `evaluate` on its validation pictures, the programs on test sets. The mean is over pictures,
never a mean of batch means.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from difflid_jax.backbones.inception import CHANNELS, Inception
from difflid_jax.metrics import protocols
from difflid_jax.metrics.fid import FeatureStatistics, frechet_distance
from difflid_jax.metrics.merge import bytes_of_all_processes
from difflid_jax.metrics.scores import score_all


class Pictures(Protocol):
    """This process's share of a data set, as `data.pipeline.Evaluation` gives it.

    Iterating yields {'name', 'index', 'hazy', 'clean'}, the pictures uint8 (H,W,3) of one size; `total`
    counts the pictures of all processes, whose indices are 0 … total - 1.
    """

    @property
    def total(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class Result:
    """Scores of one method on one data set.

    images: {'name': …, 'psnr': …, 'ssim': …} (and 'lpips') of every picture, in the data set's order.
    mean: of each metric over the images; with 'fid' where it was asked for, which is one number of the set.
    seconds: mean time to restore a picture, calls that had to compile for a new size left out; None where
    no other call was made.
    """

    method: str
    protocol: str
    images: tuple[dict[str, Any], ...]
    mean: dict[str, float]
    seconds: float | None

    def ranked(self) -> list[int]:
        """Indices of the images from the worst to the best PSNR."""
        return sorted(range(len(self.images)), key=lambda i: self.images[i]["psnr"])


def evaluate(
    restore: Callable[[np.ndarray], np.ndarray],
    pictures: Pictures,
    *,
    method: str,
    protocol: str = "paper",
    lpips: Callable | None = None,
    inception: Inception | None = None,
    batch_size: int = 1,
    warm_up: bool = False,
    watch: Callable[[int, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    progress: bool = True,
) -> Result:
    """Restore and score every picture; all processes must call it, and all get the same result.

    Args:
        restore: hazy float32 (H,W,3) in [0,1] → restored float of the same shape (clamped when scored).
        method: what the result and the progress bar call it.
        protocol: a name of `metrics.protocols.PROTOCOLS`.
        lpips: a `metrics.lpips.Lpips`, or None to leave LPIPS out.
        inception: the features of the FID between the restored and the clean pictures, or None.
        batch_size: pictures of equal size that are scored (not restored) together.
        warm_up: restore a picture of every new size once before the call that is timed.
        watch: called with (index, hazy, restored, clean), float32 (H,W,3), of every picture of this process.

    Raises: ValueError or OSError, in every process alike, where a picture cannot be read, restored or
        scored (it is named), or the data set is empty.
    """
    protocol = protocols.find_protocol(protocol)
    if not pictures.total:
        raise ValueError("there is no picture to score")
    share = _Share(restore, method, protocol, inception, warm_up, watch)
    rows, trouble = [], None
    try:
        rows = share.score(pictures, lpips, batch_size, progress)
    except (ValueError, OSError) as error:
        # The other processes wait for this one's scores: they get the error, and all raise it.
        trouble = error
    mine = json.dumps({"rows": rows, "trouble": str(trouble or "")}).encode()
    shares = [json.loads(their) for their in bytes_of_all_processes(mine)]
    if trouble is not None:
        raise trouble
    if elsewhere := [their["trouble"] for their in shares if their["trouble"]]:
        raise ValueError(elsewhere[0])
    result = _merged(
        method, protocol.name, [row for their in shares for row in their["rows"]], pictures.total
    )
    if inception is not None:
        result.mean["fid"] = frechet_distance(*(sums.of_all_processes() for sums in share.features))
    return result


class _Share:
    """This process's pictures on their way through the method and the metrics."""

    def __init__(self, restore, method, protocol, inception, warm_up, watch):
        self.restore, self.method, self.protocol = restore, method, protocol
        self.warm_up, self.watch = warm_up, watch
        self.inception = inception
        empty = FeatureStatistics(0, np.zeros(CHANNELS), np.zeros((CHANNELS, CHANNELS)))
        self.features = [empty, empty]  # of the restored and the clean pictures
        self.rows: list[dict[str, Any]] = []
        self.sizes: set[tuple[int, ...]] = set()

    def score(self, pictures: Pictures, lpips, batch_size: int, progress: bool) -> list[dict[str, Any]]:
        quiet = not progress or jax.process_index() > 0
        bar = tqdm(pictures, self.method, len(pictures), unit="image", file=sys.stderr, disable=quiet)
        stream = (self._restored(picture) for picture in bar)
        scores = score_all(stream, self.protocol, batch_size=batch_size, lpips=lpips)
        return [row | {"scores": scores.images[str(row["index"])]} for row in self.rows]

    def _restored(self, picture: Mapping[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
        hazy, clean = (picture[role].astype(np.float32) / 255 for role in ("hazy", "clean"))
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
                f"{self.method}, image {picture['name']!r}: {width}×{height} pixels need more memory than "
                "this device has; restore in tiles (evaluate --tile=auto) or use a larger device"
            ) from error
        floats = jnp.issubdtype(restored.dtype, jnp.floating)
        if restored.shape != clean.shape or not floats or not np.isfinite(restored).all():
            wrong = f", {np.count_nonzero(~np.isfinite(restored)):,} values not finite" if floats else ""
            raise ValueError(
                f"{self.method}, image {picture['name']!r}: expected finite floats of shape {clean.shape}, "
                f"found {restored.dtype} of shape {restored.shape}{wrong}"
            )
        restored = restored.astype(np.float32)
        index = int(picture["index"])
        self.rows.append({"index": index, "name": picture["name"], "seconds": seconds, "cold": cold})
        if self.inception is not None:
            prepared = protocols.prepare(restored[None], clean[None], protocol=self.protocol)
            both = np.concatenate([prepared, clean[None]])
            added = (FeatureStatistics.of(features[None]) for features in self.inception(both))
            self.features = [sums + more for sums, more in zip(self.features, added, strict=True)]
        if self.watch:
            self.watch(index, hazy, restored, clean)
        return str(index), restored, clean


def _merged(method: str, protocol: str, rows: list[dict], total: int) -> Result:
    rows.sort(key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(total)):
        raise RuntimeError(f"{len(rows)} scores for {total} pictures: some were scored twice or never")
    metrics = rows[0]["scores"]
    mean = {metric: math.fsum(row["scores"][metric] for row in rows) / total for metric in metrics}
    warm = [row["seconds"] for row in rows if not row["cold"]]
    images = tuple({"name": row["name"], **row["scores"]} for row in rows)
    return Result(method, protocol, images, mean, math.fsum(warm) / len(warm) if warm else None)
