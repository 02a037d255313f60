"""The identity of an experiment: its config as JSON, its fingerprint, and what differs from another.

A config is handled here as plain values: nested dicts with tuples (or, from JSON, lists).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

# Two values of such a field train the same weights, so it may change when a run is resumed. (Images and
# prior are compared by their contents: a run keeps a fingerprint of its data and the hash of its prior.)
FREE_FIELDS = (
    "prior",
    "data.train",
    "data.validation",
    "data.test",
    "data.train_ids",
    "data.validation_ids",
    "data.test_ids",
    "data.validation_dataset",
    "data.validation_source",
    "data.test_dataset",
    "data.test_source",
    "data.workers",
    "data.cache",
    "training.minutes",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep",
    "training.max_bad_steps",
    "training.profile_steps",
    "training.tensorboard",
    "training.fsdp",
    "evaluation.batch_size",
)

# With the fingerprint, these decide what a finished run has done.
_ENDING = (
    "prior",
    "data.train",
    "data.train_ids",
    "data.test",
    "data.test_ids",
    "data.test_dataset",
    "data.test_source",
)
# Paths and settings that may differ between the processes of a run, because they depend on the machine.
_OF_A_MACHINE = ("prior", "init", "data.train", "data.validation", "data.test", "data.workers", "data.cache")


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that name the experiment: equal fingerprints train equal weights."""
    return hashlib.sha256(to_json(_bound(fields)).encode()).hexdigest()[:16]


def differences(
    fields: Mapping[str, Any], before: Mapping[str, Any], reference: Mapping[str, Any]
) -> list[str]:
    """'config.FIELD is A, was B' for each field that the fingerprint covers and that differs.

    A field that `before` lacks, because an older version wrote it, takes its default from `reference`.
    """
    new, old = (_flat(_bound(values)) for values in (fields, _filled(before, reference)))
    missing = "not given"
    return [
        f"config.{name} is {new.get(name, missing)!r}, was {old.get(name, missing)!r}"
        for name in sorted({*new, *old})
        if new.get(name, missing) != old.get(name, missing)
    ]


def ending(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide when a run is finished; a launch with the same ones has nothing left to do."""
    flat = _flat(fields)
    return {"fingerprint": fingerprint(fields)} | {name: flat[name] for name in _ENDING if name in flat}


def shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """'config.FIELD' → value, of the fields that all processes of a run must agree on."""
    return {f"config.{name}": value for name, value in _flat(fields).items() if name not in _OF_A_MACHINE}


def to_json(fields: Mapping[str, Any]) -> str:
    """The config as JSON with sorted keys; tuples become lists."""
    return json.dumps(fields, sort_keys=True)


def from_json(text: str, reference: Mapping[str, Any]) -> ConfigDict:
    """The config in `text`, the inverse of `to_json`; missing fields take their defaults from `reference`.

    Its fields are not checked. Raises ValueError if the text is not a JSON object.
    """
    return ConfigDict(_filled(read_json(text), reference))


def read_json(text: str) -> dict[str, Any]:
    """The fields in `text`, lists as tuples. Raises ValueError if the text is not a JSON object."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("expected a config as a JSON object")
    return _with_tuples(fields)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _filled(fields: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """`fields`, with missing ones taken from `reference`."""
    filled = dict(fields)
    for name, default in reference.items():
        if isinstance(default, Mapping) and isinstance(fields.get(name), Mapping):
            filled[name] = _filled(fields[name], default)
        else:
            filled.setdefault(name, default)
    return filled


def _bound(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide the trained weights."""
    bound = {name: dict(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    for field in FREE_FIELDS:
        section, _, name = field.rpartition(".")
        (bound.get(section, {}) if section else bound).pop(name, None)
    return bound


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON reads them back, by dotted names."""
    return flatten_dict(json.loads(to_json(fields)), sep=".")
