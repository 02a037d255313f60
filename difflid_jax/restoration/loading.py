"""Restorers by shipped name, weights folder or workdir."""

import os
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from difflid_jax.cli import resolve_dtype
from difflid_jax.features.build import FrozenFeatures, build_features
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec
from difflid_jax.network.release import ReleasedDiffLI2D, ReleaseSpec
from difflid_jax.restoration.plan import checked_tile
from difflid_jax.restoration.restorer import Restorer
from difflid_jax.weights import schema, store

_DTYPES = ("auto", "float32", "bfloat16")


def load_restorer(
    name_or_folder: str | os.PathLike = "haze",
    *,
    prior: str | os.PathLike | None = None,
    dtype: str = "auto",
    tile: str | int = "auto",
    ensemble: str = "none",
) -> Restorer:
    """The restorer of a shipped name, of a weights folder, or of a training run's workdir.

    prior: the frozen model, if not the one that the restorer's metadata name. dtype: precision of the frozen
    model: 'float32', 'bfloat16', or 'auto' (bfloat16 on GPU and TPU). tile, ensemble: see `Restorer`.

    Raises FileNotFoundError for missing weights, ValueError for another dtype, tile or ensemble, for weights
    of another kind, version or architecture, and for a prior other than the one the restorer was trained
    with.
    """
    schema.check_choice("dtype", dtype, _DTYPES)
    tile = checked_tile(tile)
    folder = Path(name_or_folder).expanduser()
    if (folder / "weights" / store.FILE).is_file() and not (folder / store.FILE).exists():
        name_or_folder = folder / "weights"
    weights = store.read(name_or_folder, "restorer")
    where = str(weights.path)
    if weights.architecture.get("network") == "release":
        spec, kind = weights.spec(ReleaseSpec), ReleasedDiffLI2D
    elif weights.architecture.get("network") == "plus":
        spec, kind = weights.spec(PlusSpec), DiffLI2DPlus
    else:
        spec, kind = weights.spec(NetworkSpec), DiffLI2D
    features = _features(weights, prior, resolve_dtype(dtype))
    if spec.feature_channels != features.channels:
        raise ValueError(
            f"{where}: expected features of {spec.feature_channels} channels, found {features.channels} "
            "in its prior; name the prior that it was trained with"
        )
    network = nnx.eval_shape(lambda: kind(spec, rngs=nnx.Rngs(0)))
    store.fill(network, weights.tensors, where=where)
    facts = {"weights": os.fspath(name_or_folder), "sha256": weights.sha256, **weights.metadata}
    noise_seed = weights.metadata.get("noise_seed", 0)
    return Restorer.of(network, features, noise_seed=noise_seed, tile=tile, ensemble=ensemble, facts=facts)


def _features(weights: store.Weights, prior: str | os.PathLike | None, dtype: str) -> FrozenFeatures:
    metadata = weights.metadata
    if "features" not in metadata or ("prior" not in metadata and prior is None):
        raise ValueError(
            f"{weights.path}: its metadata name neither features nor prior; write the folder again with "
            "`train`, or convert the checkpoint again"
        )
    fields = dict(metadata["features"])
    kind = fields.pop("kind", "h_space")
    config = metadata.get("config", {})
    random_seed = config.get("seed", 0) if config.get("features", {}).get("random") else None
    try:
        spec = HSpaceSpec.from_dict(fields) if fields else None
        features = build_features(
            kind,
            metadata["prior"] if prior is None else prior,
            spec,
            dtype=jnp.dtype(dtype),
            random_seed=random_seed,
        )
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the prior of {weights.path}: {error}; if it is elsewhere, name it (prior=, --prior)"
        ) from error
    expected = metadata.get("prior_sha256")
    if expected and features.sha256 != expected:
        raise ValueError(
            f"{weights.path}: expected the prior with SHA-256 {expected}, found {features.sha256} in "
            f"{prior or metadata['prior']}; name the prior that it was trained with (prior=, --prior)"
        )
    return features
