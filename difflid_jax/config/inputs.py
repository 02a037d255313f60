"""The inputs that an experiment names, opened: data sets and the frozen feature network.

Errors are ValueErrors that name the field of the config. Nothing is written except the decoded cache, if one
is requested.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from difflid_jax.cli import one_line, resolve_dtype
from difflid_jax.config.experiment import Experiment, PriorExperiment, Source
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.data.sources import DataSet, hold_out, open_data
from difflid_jax.features.build import FrozenFeatures, build_features
from difflid_jax.metrics.protocols import PROTOCOLS

_WITHOUT_PRIOR = ("vgg16",)


def check_given(experiment: Experiment | PriorExperiment) -> None:
    """Raise ValueError naming every required input that is not given."""
    missing = []
    if not experiment.train.is_given:
        missing.append("--config.data.train=PATH (the training images)")
    if (
        isinstance(experiment, Experiment)
        and not experiment.prior
        and experiment.features.kind not in _WITHOUT_PRIOR
    ):
        missing.append(
            "--config.prior=FOLDER (the frozen diffusion model; the paper's is OpenAI's "
            "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt, "
            "converted with `python -m convert_weights.openai_ddpm`; --config.prior=photos64 takes the "
            "small one that is included)"
        )
    if missing:
        raise ValueError(f"not given: {' and '.join(missing)}")


def open_images(source: Source, cache: Path | None = None, *, thorough: bool = False) -> DataSet:
    """The images of a role; `thorough` decodes each once, so that damage is found now."""
    try:
        data = open_data(
            source.source,
            source.root,
            ids=source.ids,
            frame=source.frame,
            dataset=source.dataset,
            split="train" if source.role == "train" or source.holdout else "test",
            cache=cache,
            sky=source.sky,
            thorough=thorough,
            progress=jax.process_index() == 0,
        )
        if not source.holdout:
            return data
        return hold_out(data, source.holdout, source.seed)[source.role == "validation"]
    except FileNotFoundError as error:
        flag = f"--config.data.{source.role}=PATH"
        raise ValueError(f"config.data.{source.role}: {one_line(error)}; give {flag}") from error
    except (ValueError, NotADirectoryError) as error:
        raise ValueError(f"config.data.{source.role}: {one_line(error)}") from error


def open_evaluation(experiment: Experiment, source: Source) -> Evaluation | None:
    """This process's share of the images that are scored in a role; None if the config names none."""
    if not source.is_given:
        return None
    images = open_images(source, thorough=True)
    _check_large_enough(experiment, source.role, images)
    return Evaluation(
        images,
        experiment.haze,
        limit=experiment.evaluation.limit if source.role == "validation" else 0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def open_features(experiment: Experiment) -> FrozenFeatures:
    """The frozen features of the experiment, with their weights."""
    spec = experiment.features
    try:
        return build_features(
            spec.kind,
            experiment.prior,
            spec.h_space,
            dtype=jnp.dtype(resolve_dtype(spec.dtype)),
            random_seed=experiment.seed if spec.random else None,
        )
    except FileNotFoundError as error:
        raise ValueError(f"config.prior: {error}") from error


def _check_large_enough(experiment: Experiment, role: str, images: DataSet) -> None:
    """Raise ValueError for images that are too small to be scored, before a long run starts."""
    evaluation, least = experiment.evaluation, experiment.evaluation.least_side
    helps = PROTOCOLS[evaluation.protocol].crop < least
    for name, positions in zip(images.names, images.elements, strict=True):
        height, width = images.store.shape(positions[0])[:2]
        if min(height, width) < least:
            raise ValueError(
                f"config.data.{role}: {name} is {width}×{height}, and its scores need sides of at least "
                f"{least}; leave it out"
                + (" or the LPIPS (config.evaluation.lpips=False)" if evaluation.lpips and helps else "")
            )
