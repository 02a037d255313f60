"""Scores of the network while it trains, on whole pictures, with a sheet of the first few."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.evaluation import scoring
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.metrics.lpips import Lpips
from difflid_jax.training.loop import Evaluate

_SHEET_ROWS = 4


class Scorer:
    """Scores parameters of a network on pictures; each process restores its share on its first device.

    restoring: (params, frozen), both on one device, → the function of hazy float32 (H,W,3) in [0,1] that
    restores with them. `frozen` are the parameters of the feature network as they lie on the mesh, perhaps
    split. `batch_size` pictures of equal size are scored together.
    """

    def __init__(
        self,
        restoring: Callable[[Any, Any], Callable[[np.ndarray], np.ndarray]],
        frozen: Any,
        mesh: Mesh,
        *,
        protocol: str,
        batch_size: int,
        lpips: bool,
    ):
        self._restoring, self._frozen, self._mesh = restoring, frozen, mesh
        self._scoring = {"protocol": protocol, "batch_size": batch_size, "lpips": Lpips() if lpips else None}

    def on(self, pictures: Evaluation) -> Evaluate:
        """The function (params, interrupted) → (mean scores, sheet), or None where it was interrupted."""
        return lambda params, interrupted: self._score(pictures, params, interrupted)

    def _score(self, pictures: Evaluation, params: Any, interrupted: Callable[[], bool]):
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
            result = scoring.evaluate(restore, pictures, method="evaluating", watch=watch, **self._scoring)
        except _Interrupted:
            return None
        sheet = contact_sheet(rows, ["hazy", "restored", "clean"]) if rows else None
        return result.mean, sheet


class _Interrupted(Exception):
    pass
