"""Scores of the network while it trains, on whole pictures, with a sheet of the first few."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from difflid_jax.data.images import contact_sheet
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.evaluation import scoring
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.features.h_space import pad_to_multiple
from difflid_jax.metrics.lpips import Lpips
from difflid_jax.training import mesh as devices
from difflid_jax.training.loop import Evaluate

_SHEET_ROWS = 4


class Scorer:
    """Scores parameters of a network on pictures; each process restores its share on its first device."""

    def __init__(
        self,
        network: nnx.GraphDef,
        stride: int,
        features: FrozenFeatures,
        frozen: Any,
        mesh: Mesh,
        *,
        noise_seed: int,
        protocol: str,
        batch_size: int,
        lpips: bool,
    ):
        """`frozen` are the parameters of the feature network as they lie on the mesh, perhaps split.

        `stride`: the network's. `batch_size` pictures of equal size are scored together.
        """
        self._frozen, self._mesh = frozen, mesh
        self._scoring = {"protocol": protocol, "batch_size": batch_size, "lpips": Lpips() if lpips else None}
        multiple = math.lcm(features.multiple, stride)

        def restore(params, frozen, hazy):
            height, width = hazy.shape[:2]
            x = pad_to_multiple(hazy[None] * 2 - 1, multiple)
            maps = features.apply(frozen, x, jax.random.key(noise_seed))
            restored, _ = nnx.merge(network, params)(x, *maps)
            return (restored[0, :height, :width] + 1) / 2

        self._restore = jax.jit(restore)

    def on(self, pictures: Evaluation) -> Evaluate:
        """The function (params, interrupted) → (mean scores, sheet), or None where it was interrupted."""
        return lambda params, interrupted: self._score(pictures, params, interrupted)

    def _score(self, pictures: Evaluation, params: Any, interrupted: Callable[[], bool]):
        params, frozen = devices.on_one_device(self._mesh, (params, self._frozen))
        rows: list[list[np.ndarray]] = []

        def restore(hazy: np.ndarray) -> np.ndarray:
            # Among many processes all go on to the end, so that none waits for another in vain.
            if interrupted() and jax.process_count() == 1:
                raise _Interrupted
            return np.asarray(self._restore(params, frozen, hazy))

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
