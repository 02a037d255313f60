"""Checks of a weights file's description of itself, made before anything is built from it.

Architectures are frozen dataclasses, `JsonSpec`s. `check_metadata` covers the rest of the metadata,
`check_choice` and `check_least` any one value.
Every failure is a ValueError of one line that names the field, what was expected and what was found.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

Range = tuple[float, float]

# More elements than any list in an architecture has: widths, channel multipliers, timesteps.
MOST_ELEMENTS = 16
SEEDS: Range = (0, 2**32 - 1)

# Metadata with a meaning to this package, by dotted path: the type and, for numbers, the range of the value.
METADATA: dict[str, tuple[Any, Range | None]] = {
    "prior": (str, None),
    "prior_sha256": (str, None),
    "features": (dict, None),
    "features.kind": (str, None),
    "noise_seed": (int, SEEDS),
    "part": (str, None),
    "step": (int, (0, 2**53)),
    "source": (str, None),
    "source_sha256": (str, None),
    "protocol": (str, None),
    "scores": (dict, None),
    "config": (dict, None),
    "config.seed": (int, SEEDS),
    "config.features": (dict, None),
    "config.features.random": (bool, None),
}


class JsonSpec:
    """Base of frozen dataclasses that are stored as JSON objects, with lists for tuples.

    Their `__post_init__` calls `check_fields`. SECTION: their name in messages. NETWORK: stored as `network`,
    to tell networks of one kind of weights apart; '' for none.
    """

    SECTION = ""
    NETWORK = ""

    def check_fields(self, **ranges: Range) -> None:
        """Raise ValueError for a field that is not of its annotation or outside its inclusive range, if any.

        The range of a tuple holds for each element.
        """
        annotations = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name = f"{self.SECTION}.{field.name}"
            _check_value(name, getattr(self, field.name), annotations[field.name], ranges.get(field.name))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = dataclasses.asdict(self) | ({"network": self.NETWORK} if self.NETWORK else {})
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """The inverse of `to_dict`.

        Raises ValueError for anything but an object, unknown or missing fields, and values out of range.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"{cls.SECTION}: expected a JSON object, found {brief(fields)}")
        fields = {name: v for name, v in fields.items() if not cls.NETWORK or name != "network"}
        declared = dataclasses.fields(cls)
        unknown = [name for name in fields if name not in {field.name for field in declared}]
        required = [field.name for field in declared if field.default is dataclasses.MISSING]
        parts = [("unknown", unknown), ("missing", [name for name in required if name not in fields])]
        if wrong := "; ".join(f"{what} fields {listed(names)}" for what, names in parts if names):
            raise ValueError(f"{cls.SECTION}: {wrong}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Check the entries of `METADATA` that are present: types and ranges. Raises ValueError."""
    for path, (kind, bounds) in METADATA.items():
        value: Any = metadata
        for key in path.split("."):
            if key not in value:
                break
            value = value[key]  # a parent comes before its children in METADATA, and is an object
        else:
            _check_value(path, value, kind, bounds)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError if `value` is none of the `choices`; `name` is the field or argument."""
    if value not in choices:
        listed_choices = ", ".join(str(choice) or "''" for choice in choices)
        raise ValueError(f"{name}: expected one of {listed_choices}, found {brief(value)}")


def check_least(name: str, value: float, lowest: float) -> None:
    """Raise ValueError if `value` is less than `lowest`; `name` is the field or argument."""
    if value < lowest:
        raise ValueError(f"{name}: expected at least {lowest}, found {value}")


def listed(names: Sequence[Any], *, most: int = 4, separator: str = ", ") -> str:
    """The first few of `names` for an error message, and how many more there are."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return separator.join(str(name)[:200] for name in names[:most]) + rest


def brief(value: Any) -> str:
    """A value from a file for an error message: its type if it is large, else its repr."""
    if isinstance(value, (str, int, float, bool, type(None))) and not (
        isinstance(value, int) and value.bit_length() > 200
    ):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "…"
    if isinstance(value, (list, tuple)) and len(value) <= MOST_ELEMENTS:
        return "[" + ", ".join(brief(element)[:20] for element in value) + "]"
    return f"a {type(value).__name__} of {len(value):,} elements" if hasattr(value, "__len__") else "a number"


def _check_value(name: str, value: Any, kind: Any, bounds: Range | None) -> None:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return
        (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        fixed = None if kinds[-1] is Ellipsis else len(kinds)
        if not isinstance(value, tuple) or len(value) > MOST_ELEMENTS or fixed not in (None, len(value)):
            many = f"{fixed} numbers" if fixed else f"at most {MOST_ELEMENTS} numbers"
            raise ValueError(f"{name}: expected a list of {many}, found {brief(value)}")
        for i, element in enumerate(value):
            _check_value(f"{name}[{i}]", element, kinds[0], bounds)
        return
    numeric = kind in (int, float) and isinstance(value, int) and not isinstance(value, bool)
    if not (numeric or isinstance(value, kind)) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ValueError(f"{name}: expected {words.get(kind, 'a JSON object')}, found {brief(value)}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value}")
    if bounds and not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{name}: expected {bounds[0]:,} to {bounds[1]:,}, found {brief(value)}")
