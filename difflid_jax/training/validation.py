"""Scores of the network during training, on whole images, with a sheet of the first few."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.evaluation import scoring
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.metrics.fidelity import GAUSSIAN_SIZE
from difflid_jax.metrics.lpips import LEAST_SIDE, Lpips
from difflid_jax.metrics.protocols import PROTOCOLS
from difflid_jax.training.loop import Evaluate
from difflid_jax.weights import schema

_SHEET_ROWS = 4


@dataclass(frozen=True)
class EvaluationSpec:
    """How a restorer is scored during its training and at its end.

    batch_size: images of equal size that are scored together. best: the score whose best weights are kept.
    limit: number of validation images scored, 0 for all.
    """

    protocol: str = "paper"
    batch_size: int = 1
    lpips: bool = True
    best: str = "psnr"
    limit: int = 0

    def __post_init__(self):
        schema.check_choice("evaluation.protocol", self.protocol, PROTOCOLS)
        scores = ("psnr", "ssim", *(["lpips"] if self.lpips else []))
        schema.check_choice("evaluation.best", self.best, scores)
        for name, lowest in (("batch_size", 1), ("limit", 0)):
            schema.check_least(f"evaluation.{name}", getattr(self, name), lowest)

    @property
    def least_side(self) -> int:
        """Side in pixels of the smallest image that can be scored."""
        least = LEAST_SIDE["alex"] if self.lpips else GAUSSIAN_SIZE
        return max(least, PROTOCOLS[self.protocol].crop)


class Scorer:
    """Scores parameters of a network on images; each process restores its share on its first device.

    restoring: (params, frozen), both on one device → the function that restores a hazy image, float32 (H,W,3)
    in [0,1], with them. frozen: parameters of the feature network on the mesh, possibly split.
    """

    def __init__(
        self,
        restoring: Callable[[Any, Any], Callable[[np.ndarray], np.ndarray]],
        frozen: Any,
        mesh: Mesh,
        spec: EvaluationSpec,
    ):
        self._restoring, self._frozen, self._mesh = restoring, frozen, mesh
        self._scoring = {
            "protocol": spec.protocol,
            "batch_size": spec.batch_size,
            "lpips": Lpips() if spec.lpips else None,
        }

    def on(self, images: Evaluation) -> Evaluate:
        """The function (params, interrupted) → (mean scores, sheet), or None if interrupted."""
        return lambda params, interrupted: self._score(images, params, interrupted)

    def _score(self, images: Evaluation, params: Any, interrupted: Callable[[], bool]):
        restore_with = self._restoring(*parallel.on_one_device(self._mesh, (params, self._frozen)))
        rows: list[list[np.ndarray]] = []

        def restore(hazy: np.ndarray) -> np.ndarray:
            if interrupted():
                raise _Interrupted
            return restore_with(hazy)

        def watch(index, hazy, restored, clean):
            if len(rows) < _SHEET_ROWS:
                rows.append([hazy, restored, clean])

        try:
            result = scoring.evaluate(restore, images, method="evaluating", watch=watch, **self._scoring)
        except _Interrupted:
            return None
        sheet = contact_sheet(rows, ["hazy", "restored", "clean"]) if rows else None
        return result.mean, sheet


class _Interrupted(Exception):
    pass
