"""What a diffusion prior knows about photographs and haze: the claims of the paper's Sec. 4.1 as numbers.

In Figs. 1 and 7, at a small timestep, the h-spaces of a hazy image and its clean partner are close and those
of different scenes are apart. At a larger timestep, hazy and clean images are apart in every scene. Distances
and retrieval measure the first, the accuracy of a linear probe the second.

Features are a layer's outputs averaged over positions. Every image, partners included, has its own noise, as
when two images are restored. With equal noise, partners would be alike at any timestep, and the paper's third
finding, that too much noise leaves neither content nor haze, would not show.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.manifold import TSNE
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from difflid_jax.data.augment import RESIDE
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.data.sources import DataSet, in_memory
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.features.h_space import layers_at
from difflid_jax.features.prior import Prior
from difflid_jax.features.view import resized

FOLDS = 5
_SCENES = 8  # read together
_CLEAN = {"pairs": 1, "depth": 0, "images": 0}  # column of a data set's elements


class Pairs(NamedTuple):
    """hazy and clean float32 (N,S,S,3) in [-1,1]; β and A, each (N,), of haze made on the fly, else None."""

    hazy: np.ndarray
    clean: np.ndarray
    beta: np.ndarray | None = None
    airlight: np.ndarray | None = None


def make_pairs(data: DataSet, side: int, seed: int) -> Pairs:
    """Every scene of `data`, hazy and clean, as a prior sees it at side×side.

    Images with depth get RESIDE's haze, made on the whole image as for evaluation; pairs are taken as they
    are. Raises ValueError for images that have neither a hazy partner nor depth.
    """
    is_made = data.kind == "depth"
    rng = np.random.default_rng(seed)
    beta, airlight = (rng.uniform(*span, len(data)) for span in (RESIDE.beta, RESIDE.airlight))
    hazy, clean = [], []
    for i in tqdm(range(len(data)), desc="pairs", unit="scene"):
        haze = replace(RESIDE, beta=(beta[i],) * 2, airlight=(airlight[i],) * 2, seed=seed)
        pair = Evaluation(data, haze if is_made else RESIDE)[i]
        hazy.append(resized(pair["hazy"], (side, side)))
        clean.append(resized(pair["clean"], (side, side)))
    images = (np.stack(part) / np.float32(127.5) - 1 for part in (hazy, clean))
    return Pairs(*images, *((beta, airlight) if is_made else (None, None)))


def clean_images(data: DataSet, side: int) -> DataSet:
    """The distinct clean images of `data`, whole and resized to side×side, in memory."""
    found = {}
    names = dict(zip(data.elements[:, _CLEAN[data.kind]].tolist(), data.names, strict=True))
    for position, name in tqdm(names.items(), desc="clean images", unit="image"):
        image = resized(data.store.read(position), (side, side))
        found[f"{position} {name}"] = np.rint(image).astype(np.uint8)
    return in_memory(found)


def layer_features(
    prior: Prior, pairs: Pairs, times: Sequence[int], layers: Collection[str], seed: int
) -> dict[tuple[str, int], Float32[np.ndarray, "2 n c"]]:
    """{(layer, t): (2,N,C)}: a layer of the hazy and of the clean images, averaged over positions.

    Each image has its own noise, the same at every timestep; t = 0 has none.
    """
    graph, parameters = nnx.split(prior.unet)

    @jax.jit
    def run(parameters, images, key, at):
        found = layers_at(nnx.merge(graph, parameters), prior.schedule, images, key, at, layers)
        return {layer: h.astype(jnp.float32).mean((2, 3)) for layer, h in found.items()}

    total, pairs_of_times = len(pairs.clean), [[t, [*times, t][i + 1]] for i, t in enumerate(times)][::2]
    parts: dict[tuple[str, int], list[np.ndarray]] = {(layer, t): [] for layer in layers for t in times}
    for first in tqdm(range(0, total, _SCENES), desc="features", unit="batch"):
        chosen = np.minimum(np.arange(first, first + _SCENES), total - 1)  # the last batch is filled up
        images = np.concatenate([pairs.hazy[chosen], pairs.clean[chosen]])
        key = jax.random.fold_in(jax.random.key(seed), first)
        for at in pairs_of_times:  # two timesteps a pass; the last of an odd number is read twice
            for layer, h in run(parameters, images, key, np.asarray(at, np.int32)).items():
                h = np.asarray(h).reshape(2, _SCENES, 2, -1)[:, : total - first]
                for i, t in enumerate(dict.fromkeys(at)):
                    parts[layer, t].append(h[:, :, i])
    return {name: np.concatenate(found, axis=1) for name, found in parts.items()}


def image_space(pairs: Pairs, schedule: Schedule, t: int, seed: int) -> np.ndarray:
    """The images x_t that the prior sees, as features, float32 (2,N,pixels)."""
    x = np.concatenate([pairs.hazy, pairs.clean])
    if t > 0:
        noise = jax.random.normal(jax.random.key(seed), x.shape, jnp.float32)
        x = schedule.sample_noisy(x, jnp.full(len(x), t), noise)
    return np.asarray(x).reshape(2, len(pairs.clean), -1)


def distances(features: np.ndarray) -> tuple[float, float]:
    """(mean ‖h(hazy) − h(clean)‖ of a scene, mean ‖h(clean) − h(clean)‖ of two), of features (2,N,C).

    Each channel is standardized over all images first. Raises ValueError if all scenes have equal features.
    """
    hazy, clean = _standardised(features)
    count = len(clean)
    between = np.linalg.norm(clean[:, None] - clean[None], axis=-1).sum() / (count * (count - 1))
    if between == 0:
        raise ValueError("h-space: the features of all scenes are equal, so they say nothing about content")
    return float(np.linalg.norm(hazy - clean, axis=-1).mean()), float(between)


def probe_accuracy(features: np.ndarray) -> float:
    """Accuracy of logistic regression on features (2,N,C) at telling hazy from clean in held-out scenes.

    The mean over `FOLDS` folds (see `_folds`); guessing gives 0.5.
    """
    count = features.shape[1]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    labels, groups = np.repeat([1, 0], count), np.tile(_folds(count), 2)
    x = features.reshape(2 * count, -1)
    return float(cross_val_score(probe, x, labels, groups=groups, cv=LeaveOneGroupOut()).mean())


def regression_r2(features: Float[np.ndarray, "2 n c"], target: Float[np.ndarray, " n"]) -> float:
    """R² of β or A (N,), predicted by ridge regression from the hazy features over the same folds.

    The penalty is chosen within each fold. 0 is as good as predicting the mean.
    """
    probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 6)))
    folds = _folds(len(target))
    return float(
        r2_score(target, cross_val_predict(probe, features[0], target, groups=folds, cv=LeaveOneGroupOut()))
    )


def retrieval(features: Float[np.ndarray, "2 n c"]) -> float:
    """Share of the hazy images whose nearest clean image, by distance, is their own partner (chance: 1/N)."""
    hazy, clean = _standardised(features)
    nearest = np.linalg.norm(hazy[:, None] - clean[None], axis=-1).argmin(1)
    return float(np.mean(nearest == np.arange(len(clean))))


def t_sne(features: np.ndarray) -> np.ndarray:
    """Features (2,N,C) on a plane, float32 (2,N,2), by t-SNE of the standardized channels."""
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
        raise ValueError(f"expected at least {FOLDS} scenes, one per fold; found {count}")
    return np.arange(count) * FOLDS // count
