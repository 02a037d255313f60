"""Fields that change during a run: `config.changes`."""

from itertools import groupby
from operator import itemgetter

from ml_collections import ConfigDict

from difflid_jax.data.augment import HazeSpec

_OF_HAZE = [f"data.haze.{name}" for name in HazeSpec.OF_TRAINING]
CHANGEABLE = ("frequency_weight", "data.scale", "data.region", *_OF_HAZE)


def phases(config: ConfigDict) -> list[tuple[int, ConfigDict]]:
    """(first step, config) for each part of a run after its first, in order.

    `config.changes` holds (step, field, value): the field has this value from the step on, counted from 0.
    The configs returned have no changes of their own.

    Raises: ValueError for what is not such a change, and for a field that cannot change.
    """
    for change in config.changes:
        if not (isinstance(change, tuple) and len(change) == 3 and type(change[0]) is int and change[0] > 0):
            raise ValueError(
                "config.changes: expected (step, field, value) with a step of at least 1, as in "
                f"(1000, 'data.haze.dim', 0.5), found {change!r}"
            )
        if change[1] not in CHANGEABLE:
            raise ValueError(
                f"config.changes: {change[1]!r} cannot change during a run; expected one of "
                f"{', '.join(CHANGEABLE)}"
            )
    current = config.copy_and_resolve_references()
    current.changes = ()
    found = []
    for first, part in groupby(sorted(config.changes, key=itemgetter(0)), key=itemgetter(0)):
        with current.ignore_type():  # `checks.check_fields` names the field
            current.update_from_flattened_dict({field: value for _, field, value in part})
        found.append((first, current.copy_and_resolve_references()))
    return found
