"""What is reported about a run's data sets before training: how each was paired, and what they share."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from difflid_jax.atomic import write_text
from difflid_jax.data.items import digest
from difflid_jax.data.pairing.leakage import Photo, same_photographs, thumbnails
from difflid_jax.data.pairing.report import Finding
from difflid_jax.data.sources import DataSet

# Photographs are decoded to be compared; larger sets are compared by their files alone.
MOST_COMPARED = 2000


def report_roles(roles: Mapping[str, DataSet], cache: Path | None = None, *, progress: bool = True) -> str:
    """The pairing report of every role ('train', 'validation', 'test'), then a warning for shared images.

    A line for each leak names the roles and the images; '' if there is nothing to report. cache: folder of
    the decoded cache, where the warnings are kept, so that the same images are compared only once.
    """
    texts: dict[str, list[str]] = {}  # roles that are parts of one set share its report
    for role, data in roles.items():
        if data.report is not None:
            texts.setdefault(data.report.text(), []).append(role)
    lines = [f"{' and '.join(named)}: {text}" for text, named in texts.items()]
    key = digest(*((role, data.fingerprint) for role, data in roles.items()))
    kept = cache and cache / f"shared-{key}.txt"
    if kept and kept.is_file():
        return "\n".join([*lines, *kept.read_text("utf-8").splitlines()])
    leaks = [f"warning: {leak.line()}" for leak in find_shared(roles, progress=progress)]
    if kept and cache.is_dir():
        write_text(kept, "\n".join(leaks))
    return "\n".join(lines + leaks)


def find_shared(roles: Mapping[str, DataSet], *, progress: bool = True) -> list[Finding]:
    """Warnings for clean images that two roles share.

    Equal files are found by their content. If all roles together have at most `MOST_COMPARED` clean images,
    photographs that were encoded, mirrored or framed differently are found, too.
    """
    photos = {role: _photos(data) for role, data in roles.items()}
    small = {}
    if len(roles) > 1 and sum(map(len, photos.values())) <= MOST_COMPARED:
        small = {role: thumbnails(list(found.values()), progress) for role, found in photos.items()}
    findings = []
    for known, asked in combinations(roles, 2):
        equal = [
            f"{photo.name} is {photos[known][key].name}"
            for key, photo in photos[asked].items()
            if key in photos[known]
        ]
        if equal:
            words = f"{len(equal)} of {len(photos[asked])} {asked} images are also {known} images"
            findings.append(Finding("warning", words, tuple(equal)))
        if small:
            keys, names = list(photos[asked]), [photo.name for photo in photos[known].values()]
            alike = tuple(
                f"{photos[asked][keys[j]].name} shows {names[i]}"
                for j, i in same_photographs(small[known], small[asked])
                if keys[j] not in photos[known]
            )
            if alike:
                words = f"{len(alike)} {asked} images show the same photographs as {known} images"
                findings.append(Finding("warning", words, alike))
    return findings


def _photos(data: DataSet) -> dict[str, Photo]:
    """The clean images of a data set by key."""
    column = 1 if data.kind == "pairs" else 0
    positions = {int(element[column]): name for element, name in zip(data.elements, data.names, strict=True)}
    return {
        data.keys[position]: Photo(name, lambda position=position: data.store.read(position))
        for position, name in positions.items()
    }
