"""Per-image scores of a data set, their mean, and the batches that they are computed in.

The mean is over images, never a mean of batch means, and is correctly rounded (`math.fsum`): the same
scores give the same mean to the last bit, however they were ordered or spread over processes. (A score
itself is float32: another batch size may add its pixels up in another order, which moves the sixth digit.)
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike

from difflid_jax.metrics.merge import bytes_of_all_processes
from difflid_jax.metrics.protocols import Protocol, score

Example = tuple[str, np.ndarray, np.ndarray]


class Scores:
    """Scores by image name: `images[name] = {'psnr': 31.2, …}`, in the order they were added."""

    def __init__(self) -> None:
        self.images: dict[str, dict[str, float]] = {}

    def add(self, names: Sequence[str], scores: Mapping[str, ArrayLike]) -> None:
        """Take a batch: `scores[metric]` is (B,), one for each of `names`.

        Raises ValueError for a name seen before, other metrics than before, or a wrong length.
        """
        columns = {metric: np.asarray(values, np.float64) for metric, values in scores.items()}
        for metric, values in columns.items():
            if values.shape != (len(names),):
                raise ValueError(f"{len(names)} images, but {metric} has shape {values.shape}")
        for i, name in enumerate(names):
            self._add_one(name, {metric: float(values[i]) for metric, values in columns.items()})

    def mean(self) -> dict[str, float]:
        """The mean of each metric over all images. Raises ValueError when there are none."""
        if not self.images:
            raise ValueError("no image has been scored, so there is no mean")
        rows = list(self.images.values())
        return {metric: math.fsum(row[metric] for row in rows) / len(rows) for metric in rows[0]}

    def merge(self, other: "Scores") -> None:
        """Take the images of `other` too; raises ValueError where both scored the same image."""
        for name, row in other.images.items():
            self._add_one(name, row)

    def of_all_processes(self) -> "Scores":
        """The scores of every process together, the same on each; all processes must call it."""
        together = Scores()
        for share in bytes_of_all_processes(json.dumps(self.images).encode()):
            for name, row in json.loads(share).items():
                together._add_one(name, row)
        return together

    def _add_one(self, name: str, row: dict[str, float]) -> None:
        if name in self.images:
            raise ValueError(f"image {name!r} was scored twice; names must be unique in a data set")
        first = next(iter(self.images.values()), row)
        if first.keys() != row.keys():
            raise ValueError(f"image {name!r} has the scores {list(row)}, those before it {list(first)}")
        self.images[name] = row


def equal_size_batches(examples: Iterable[Example], batch_size: int) -> Iterator[tuple[list, ...]]:
    """Group (name, restored, clean) by picture size into ([names], [restored], [clean]) of ≤ batch_size.

    Order within a size is kept. At most `batch_size - 1` examples of each size wait in memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
    waiting: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        name, restored, clean = example
        if np.shape(restored) != np.shape(clean):
            raise ValueError(
                f"image {name!r}: the restored picture is {np.shape(restored)}, its ground truth "
                f"{np.shape(clean)}; they must be of one size"
            )
        group = waiting.setdefault(np.shape(clean), [])
        group.append(example)
        if len(group) == batch_size:
            yield tuple(map(list, zip(*group, strict=True)))
            group.clear()
    for group in waiting.values():
        if group:
            yield tuple(map(list, zip(*group, strict=True)))


def score_all(
    examples: Iterable[Example],
    protocol: str | Protocol = "paper",
    *,
    batch_size: int = 1,
    lpips: Callable[[ArrayLike, ArrayLike], ArrayLike] | None = None,
) -> Scores:
    """Score a stream of (name, restored, clean), pictures (H,W,3) floats in [0,1] of any sizes.

    A last, partly filled batch is filled up with copies of its last picture, whose scores are dropped:
    each picture size is compiled once.
    """
    scores = Scores()
    for names, restored, clean in equal_size_batches(examples, batch_size):
        fill = batch_size - len(names)
        batch = (np.stack(pictures + [pictures[-1]] * fill) for pictures in (restored, clean))
        values = score(*batch, protocol, lpips=lpips)
        scores.add(names, {metric: np.asarray(v)[: len(names)] for metric, v in values.items()})
    return scores
