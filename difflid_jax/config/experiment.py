"""What a checked config names, opened: pictures and the frozen feature network.

Errors are ValueErrors that name the field; nothing is written but the decoded cache, where one is asked for.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from difflid_jax.cli import one_line
from difflid_jax.config import schema
from difflid_jax.data.pipeline import Evaluation
from difflid_jax.data.sources import DataSet, open_data
from difflid_jax.features.build import FrozenFeatures, build_features
from difflid_jax.metrics.fidelity import GAUSSIAN_SIZE
from difflid_jax.metrics.lpips import LEAST_SIDE

_NO_PRIOR = (
    "config.prior is not given: it names the frozen diffusion model. The paper's is OpenAI's "
    "256x256_diffusion_uncond.pt (https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
    "256x256_diffusion_uncond.pt): fetch it, convert it with `python -m convert_weights.openai_ddpm`, and "
    "give --config.prior=FOLDER; --config.prior=photos64 takes the small one that ships with the package"
)


def open_pictures(
    config: ConfigDict, role: str, cache: str | Path = "off", *, thorough: bool = False
) -> DataSet:
    """The pictures of a role: 'train', 'validation', 'test'; `thorough` decodes each once, to be sure."""
    data = config.data
    try:
        return open_data(
            source_of(config, role),
            data[role],
            dataset=data.dataset if role == "train" else data[f"{role}_dataset"] or data.dataset,
            split="train" if role == "train" else "test",
            ids=data[f"{role}_ids"],
            frame=data.frame,
            cache=cache,
            sky=data.sky if role == "train" else 0.0,
            thorough=thorough,
            progress=jax.process_index() == 0,
        )
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"config.data.{role}: {one_line(error)}") from error


def open_evaluation(config: ConfigDict, role: str) -> Evaluation | None:
    """This process's share of the pictures to score in a role; None where the config names none.

    The photographs that installed packages carry need no path; they have no part for validation.
    """
    if not config.data[role] and not (role == "test" and source_of(config, role) == "photographs"):
        return None
    pictures = open_pictures(config, role, thorough=True)
    _check_large_enough(config, role, pictures)
    return Evaluation(
        pictures,
        schema.haze_spec(config),
        limit=config.evaluation.limit if role == "validation" else 0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def compute_dtype(config: ConfigDict) -> jnp.dtype:
    """Of the frozen network: bfloat16 on GPU and TPU, float32 on CPU, where the config leaves it open."""
    name = config.features.dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def open_features(config: ConfigDict) -> FrozenFeatures:
    """The frozen map that the config names, with its weights."""
    section = config.features
    if not config.prior and section.kind != "vgg16":
        raise ValueError(_NO_PRIOR)
    try:
        return build_features(
            section.kind,
            config.prior,
            schema.h_space_spec(config),
            dtype=compute_dtype(config),
            random_seed=config.seed if section.random else None,
        )
    except FileNotFoundError as error:
        raise ValueError(f"config.prior: {error}") from error


def _check_large_enough(config: ConfigDict, role: str, pictures: DataSet) -> None:
    """Refuse, before a long run, pictures on which a score cannot be computed."""
    least = LEAST_SIDE["alex"] if config.evaluation.lpips else GAUSSIAN_SIZE
    for name, positions in zip(pictures.names, pictures.elements, strict=True):
        height, width = pictures.store.shape(positions[0])[:2]
        if min(height, width) < least:
            raise ValueError(
                f"config.data.{role}: {name} is {width}×{height}, and its scores need sides of at least "
                f"{least}; leave it out"
                + (" or the LPIPS (config.evaluation.lpips=False)" if config.evaluation.lpips else "")
            )


def source_of(config: ConfigDict, role: str) -> str:
    """Where the pictures of a role come from, one of `data.sources.SOURCES`."""
    return config.data.source if role == "train" else config.data[f"{role}_source"] or config.data.source
