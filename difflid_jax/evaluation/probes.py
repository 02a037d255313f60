"""What a diffusion prior knows of photographs and of haze: the claims of the paper's Sec. 4.1 as numbers.

Figs. 1 and 7 show that at a small timestep the h-spaces of a hazy image and its clean partner are close, and
those of different scenes apart; at a larger one hazy and clean images are apart in every scene. The
first is measured as a ratio of distances, the second as the accuracy of a linear probe.

Features are h-spaces averaged over positions. Every image has its own noise, a hazy one other noise than its
clean partner, as when two images are restored. With equal noise, partners would be alike at any timestep, and
the paper's third finding, that too much noise leaves neither content nor haze, could not show.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32, UInt8
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.manifold import TSNE
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from difflid_jax.data.augment import RESIDE
from difflid_jax.data.pipeline import Evaluation, signed
from difflid_jax.data.sources import DataSet
from difflid_jax.diffusion.objective import SCORED_TIMES, loss_by_time
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.features.h_space import HSpaceSpec, at_side, h_space
from difflid_jax.features.prior import Prior

FOLDS = 5
_SCENES = 8  # read together


class Pairs(NamedTuple):
    """hazy and clean float32 (N,S,S,3) in [-1,1], and the β (N,) of the haze."""

    hazy: np.ndarray
    clean: np.ndarray
    beta: np.ndarray


def make_pairs(data: DataSet, side: int, seed: int) -> Pairs:
    """Every scene of `data` (images with depth), hazy and clean, as a prior sees it at side×side.

    Haze is RESIDE's, made on the whole image as for evaluation.
    """
    betas = np.random.default_rng(seed).uniform(*RESIDE.beta, len(data))
    hazy, clean = [], []
    for index, beta in enumerate(tqdm(betas, desc="pairs", unit="scene")):
        pair = Evaluation(data, replace(RESIDE, beta=(beta, beta), seed=seed))[index]
        hazy.append(_seen(pair["hazy"], side))
        clean.append(_seen(pair["clean"], side))
    return Pairs(np.stack(hazy), np.stack(clean), betas)


def _seen(image: UInt8[np.ndarray, "h w 3"], side: int) -> Float32[np.ndarray, "side side 3"]:
    return np.asarray(at_side(signed(image)[None], side)[0])


def noise_losses(prior: Prior, pairs: Pairs) -> dict[int, float]:
    """{t: noise loss, Eq. 4} of the clean images."""
    graph, parameters = nnx.split(prior.unet)
    measured = loss_by_time(graph, prior.schedule)(parameters, (x[None] for x in pairs.clean))
    found: dict[int, list[float]] = {}
    for t, loss in tqdm(measured, "noise loss", len(pairs.clean) * len(SCORED_TIMES)):
        found.setdefault(t, []).append(loss)
    return {t: float(np.mean(losses)) for t, losses in found.items()}


def h_spaces(prior: Prior, pairs: Pairs, times: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """{t: float32 (2,N,C)}: h-spaces of the hazy and the clean images, averaged over positions.

    Each image has its own noise, the same at every timestep; t = 0 has none.
    """
    graph, parameters = nnx.split(prior.unet)

    @partial(jax.jit, static_argnums=3)
    def run(parameters, images, key, spec):
        features = h_space(nnx.merge(graph, parameters), prior.schedule, images, key, spec)
        return [h.astype(jnp.float32).mean((1, 2)) for h in features]

    # Two timesteps a pass, as h_space reads them; an odd one is read twice.
    specs = [HSpaceSpec((t, [*times, t][i + 1])) for i, t in enumerate(times)][::2]
    total = len(pairs.clean)
    found: dict[int, list[np.ndarray]] = {t: [] for t in times}
    for first in tqdm(range(0, total, _SCENES), desc="h-space", unit="batch"):
        chosen = np.minimum(np.arange(first, first + _SCENES), total - 1)  # the last batch is filled up
        images = np.concatenate([pairs.hazy[chosen], pairs.clean[chosen]])
        for spec in specs:
            features = run(parameters, images, jax.random.fold_in(jax.random.key(seed), first), spec)
            for t, h in dict(zip(spec.times, features, strict=True)).items():
                found[t].append(np.asarray(h).reshape(2, _SCENES, -1)[:, : total - first])
    return {t: np.concatenate(parts, axis=1) for t, parts in found.items()}


def image_space(pairs: Pairs, schedule: Schedule, t: int, seed: int) -> np.ndarray:
    """The images x_t that the prior sees, as features, float32 (2,N,pixels)."""
    x = np.concatenate([pairs.hazy, pairs.clean])
    if t > 0:
        noise = jax.random.normal(jax.random.key(seed), x.shape, jnp.float32)
        x = schedule.sample_noisy(x, jnp.full(len(x), t), noise)
    return np.asarray(x).reshape(2, len(pairs.clean), -1)


def distances(features: np.ndarray) -> tuple[float, float]:
    """(mean ‖h(hazy) − h(clean)‖ of a scene, mean ‖h(clean) − h(clean)‖ of two), of features (2,N,C).

    Each channel is standardised over all images first. Raises ValueError if all scenes have equal features.
    """
    hazy, clean = _standardised(features)
    count = len(clean)
    between = np.linalg.norm(clean[:, None] - clean[None], axis=-1).sum() / (count * (count - 1))
    if between == 0:
        raise ValueError("h-space: the features of all scenes are equal, which says nothing of content")
    return float(np.linalg.norm(hazy - clean, axis=-1).mean()), float(between)


def probe_accuracy(features: np.ndarray) -> float:
    """How often logistic regression on features (2,N,C) tells hazy from clean in scenes it was not fitted to.

    The mean over `FOLDS` folds (see `_folds`); guessing gives 0.5.
    """
    count = features.shape[1]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    labels, groups = np.repeat([1, 0], count), np.tile(_folds(count), 2)
    x = features.reshape(2 * count, -1)
    return float(cross_val_score(probe, x, labels, groups=groups, cv=LeaveOneGroupOut()).mean())


def haze_r2(features: np.ndarray, beta: np.ndarray) -> float:
    """R² of β (N,), predicted by ridge regression from the hazy features of (2,N,C) over the same folds.

    The penalty is chosen within each fold. 0 is as good as predicting the mean.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 6)))
    folds = _folds(len(beta))
    return float(
        r2_score(beta, cross_val_predict(probe, features[0], beta, groups=folds, cv=LeaveOneGroupOut()))
    )


def t_sne(features: np.ndarray) -> np.ndarray:
    """Features (2,N,C) on a plane, float32 (2,N,2), by t-SNE of the standardised channels."""
    points = _standardised(features).reshape(2 * features.shape[1], -1)
    perplexity = min(30.0, (len(points) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    return found.reshape(2, -1, 2)


def _standardised(features: np.ndarray) -> np.ndarray:
    flat = features.reshape(-1, features.shape[-1])
    return StandardScaler().fit_transform(flat).reshape(features.shape)


def _folds(count: int) -> np.ndarray:
    """The fold of each scene: consecutive scenes, since neighbours in NYU Depth v2 often show one room."""
    if count < FOLDS:
        raise ValueError(f"expected at least {FOLDS} scenes, one a fold; found {count}")
    return np.arange(count) * FOLDS // count
