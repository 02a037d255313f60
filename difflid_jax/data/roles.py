"""What to know about the data sets of a run before it trains: how each was paired, and what they share."""

from collections.abc import Mapping
from itertools import combinations

from difflid_jax.data.pairing.leakage import Photo, same_photographs
from difflid_jax.data.pairing.report import Finding
from difflid_jax.data.sources import DataSet

# Photographs are decoded to be compared; larger sets are compared by their files alone.
MOST_COMPARED = 2000


def report_roles(roles: Mapping[str, DataSet], *, progress: bool = True) -> str:
    """The pairing report of every role ('train', 'validation', 'test'), then a warning for shared images.

    A line for each leak names the roles and the images; '' if there is nothing to say.
    """
    texts: dict[str, list[str]] = {}  # roles that are parts of one set share its report
    for role, data in roles.items():
        if data.report is not None:
            texts.setdefault(data.report.text(), []).append(role)
    lines = [f"{' and '.join(named)}: {text}" for text, named in texts.items()]
    for known, asked in combinations(roles, 2):
        for leak in find_shared(roles[known], roles[asked], known, asked, progress=progress):
            lines.append(f"warning: {leak.line()}")
    return "\n".join(lines)


def find_shared(
    known: DataSet, asked: DataSet, known_role: str, asked_role: str, *, progress: bool = True
) -> list[Finding]:
    """Warnings for images of `asked` that are also in `known`.

    Equal files are found by their content. If both sets together have at most `MOST_COMPARED` clean images,
    photographs that were encoded, mirrored or framed anew are found, too.
    """
    photos, others = _photos(known), _photos(asked)
    equal = [f"{photo.name} is {photos[key].name}" for key, photo in others.items() if key in photos]
    findings = []
    if equal:
        words = f"{len(equal)} of {len(others)} {asked_role} images are also {known_role} images"
        findings.append(Finding("warning", words, tuple(equal)))
    others = {key: photo for key, photo in others.items() if key not in photos}
    if others and photos and len(photos) + len(others) <= MOST_COMPARED:
        alike = same_photographs(list(photos.values()), list(others.values()), progress=progress)
        if alike:
            words = f"{len(alike)} {asked_role} images show the same photographs as {known_role} images"
            named = tuple(f"{scored.name} shows {trained.name}" for scored, trained in alike)
            findings.append(Finding("warning", words, named))
    return findings


def _photos(data: DataSet) -> dict[str, Photo]:
    """The clean images of a data set by their keys."""
    column = 1 if data.kind == "pairs" else 0
    positions = {int(element[column]): name for element, name in zip(data.elements, data.names, strict=True)}
    return {
        data.keys[position]: Photo(name, lambda position=position: data.store.read(position))
        for position, name in positions.items()
    }
