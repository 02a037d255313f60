"""What a config may hold: its fields and their types, and no field that would have no effect.

Ranges are checked by the specs that the sections become (`config.experiment`).
"""

import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from difflid_jax.config import schema
from difflid_jax.data.augment import HazeSpec
from difflid_jax.data.sources import SOURCES

_PAIRED = ("folders", "tfds")  # the sources of pairs; the others make haze on the fly
_FROM_CLASSIFIER = ("features.layer", "features.times", "features.noise_at_zero", "features.side")


def check_fields(config: ConfigDict, reference: ConfigDict) -> None:
    """Raise ValueError for a field of `config` that is unknown, missing, of another type or not finite."""
    _check_section(config.to_dict(), reference.to_dict(), "")


def check_effects(config: ConfigDict) -> None:
    """Raise ValueError for fields of a restorer's config that were changed and would have no effect."""
    rules = (*_idle_features(config), *_idle_data(config), *_idle_lengths(config))
    _refuse_idle(config, schema.default(), rules)


def check_prior_effects(config: ConfigDict) -> None:
    """As `check_effects`, for the config of a diffusion prior."""
    _refuse_idle(config, schema.default_prior(), _idle_lengths(config))


def get(config: ConfigDict, field: str) -> Any:
    """The value of a field, given by its dotted name."""
    for name in field.split("."):
        config = config[name]
    return config


Rules = Iterable[tuple[bool, Iterable[str], str]]  # (applies, idle fields, why and what to do)


def _refuse_idle(config: ConfigDict, reference: ConfigDict, rules: Rules) -> None:
    """Raise ValueError for each field to which a rule applies and that differs from its default."""
    idle = [
        f"config.{field} has no effect: {reason}"
        for applies, fields, reason in rules
        if applies
        for field in fields
        if get(config, field) != get(reference, field)
    ]
    if idle:
        raise ValueError("; ".join(idle))


def _idle_features(config: ConfigDict) -> Rules:
    features, network = config.features, config.network
    return [
        (
            features.kind in ("vgg16", "resnet50"),
            (*_FROM_CLASSIFIER, "features.noise_seed"),
            f"{features.kind} gives its last layer and takes no timestep; leave it out",
        ),
        (
            features.kind == "release",
            ("features.layer", "features.noise_at_zero", "features.side"),
            "the released code always takes the noised output at full size; leave it out",
        ),
        (
            0 not in features.times,
            ("features.noise_at_zero",),
            "no timestep is 0; leave it out, or set config.features.times",
        ),
        (
            network.kind != "plus",
            ("network.branches", "network.patch", "network.head", "data.view"),
            "only DiffLI²D+ has it; set config.network.kind='plus', or leave it out",
        ),
        (
            not features.side,
            ("data.view",),
            "the size of the whole image's features is not given; set config.features.side=64",
        ),
        (
            not config.data.view,
            ("data.region", "features.cache"),
            "it is for features of whole images; set config.data.view=True, or leave it out",
        ),
        (
            config.data.region != (1.0, 1.0),
            ("features.cache",),
            "every crop has features of another region; set config.data.region=(1.0, 1.0), or leave it out",
        ),
        (
            config.data.cache == "off",
            ("features.cache",),
            "features need a folder; give config.data.cache one, or leave it out",
        ),
        (
            bool(network.preset),
            ("network.widths",),
            f"the preset {network.preset!r} sets the widths; also set config.network.preset=''",
        ),
        (
            bool(network.variant),
            ("network.content", "network.haze"),
            f"the variant {network.variant!r} sets both modules; also set config.network.variant=''",
        ),
    ]


def _idle_data(config: ConfigDict) -> Rules:
    data = config.data
    sources = {
        "train": data.source,
        "validation": data.validation_source or data.source,
        "test": data.test_source or data.source,
    }
    inherits = {"train"} | {role for role in ("validation", "test") if not data[f"{role}_dataset"]}
    makes_haze = {role for role, source in sources.items() if source in SOURCES and source not in _PAIRED}
    remedy = "set config.data.source to 'photographs' or 'rgbd', or leave it out"
    return [
        (
            not any(sources[role] in _PAIRED for role in inherits),
            ("data.dataset",),
            f"the source {data.source!r} has no layout; leave it out",
        ),
        (
            data.holdout > 0,
            ("data.validation", "data.validation_ids", "data.validation_source", "data.validation_dataset"),
            "config.data.holdout takes the validation set from the training set; leave it out",
        ),
        (
            not makes_haze,
            ("data.frame",),
            "no source has depth; leave it out",
        ),
        (
            not makes_haze,
            [f"data.haze.{name}" for name in ("airlight", "beta", "seed")],
            f"no source makes haze on the fly; {remedy}",
        ),
        (
            "train" not in makes_haze,
            [f"data.haze.{name}" for name in HazeSpec.OF_TRAINING],
            f"the training source {data.source!r} makes no haze; {remedy}",
        ),
        (
            data.haze.light == (1.0, 1.0),
            ("data.haze.dim",),
            "nothing is dimmed; set config.data.haze.light=(0.5, 1.0), or leave it out",
        ),
        (
            "train" in makes_haze,
            ("features.cache",),
            f"the training source {data.source!r} makes the haze of every crop anew; leave it out",
        ),
        (
            data.source != "photographs",
            ("data.sky",),
            f"the training source {data.source!r} makes up no depth; set config.data.source='photographs', "
            "or leave it out",
        ),
    ]


def _idle_lengths(config: ConfigDict) -> Rules:
    return [
        (
            config.optimizer.schedule != "halve",
            ("optimizer.halve_every_epochs",),
            f"the schedule is {config.optimizer.schedule!r}; set config.optimizer.schedule='halve', or leave "
            "it out",
        ),
        (
            config.optimizer.schedule != "cosine",
            ("optimizer.cycles",),
            f"the schedule is {config.optimizer.schedule!r}; set config.optimizer.schedule='cosine', or "
            "leave it out",
        ),
        (
            config.training.steps > 0,
            ("training.epochs",),
            f"config.training.steps={config.training.steps} sets the length; also set "
            "config.training.steps=0",
        ),
    ]


def _check_section(values: dict, reference: dict, prefix: str) -> None:
    for name in values:
        if name not in reference:
            raise ValueError(
                f"config.{prefix}{name} is not a field of this config; expected one of {', '.join(reference)}"
            )
    for name, expected in reference.items():
        field = f"{prefix}{name}"
        if name not in values:
            raise ValueError(f"config.{field} is missing; start from a default of difflid_jax.config.schema")
        value = values[name]
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise ValueError(
                    f"config.{field}: expected a section with {', '.join(expected)}, found {value!r}"
                )
            _check_section(value, expected, f"{field}.")
        elif type(value) is not type(expected):
            raise ValueError(
                f"config.{field}: expected type {type(expected).__name__}, found "
                f"{type(value).__name__} {value!r}"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{field}: expected a finite number, found {value!r}")
