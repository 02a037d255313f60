"""The images that are scored: found, checked and described before anything is computed."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from difflid_jax.data.files import find_files
from difflid_jax.data.pairing import pairs
from difflid_jax.data.pipeline import Evaluation, HazeSpec
from difflid_jax.data.sources import open_data
from difflid_jax.evaluation.methods import Method


@dataclass(frozen=True)
class TestSet:
    """This process's share of the images to score, what a report says about them, and what was left out."""

    __test__ = False  # not a test class, despite its name

    images: Evaluation
    about: dict[str, Any]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestoredElsewhere:
    """The images of a test set, `hazy` replaced by what another program restored from it."""

    images: Evaluation
    files: Mapping[str, Any]

    @property
    def total(self) -> int:
        return self.images.total

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._replaced, self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._replaced(self.images[index])

    def _replaced(self, image: dict[str, Any]) -> dict[str, Any]:
        return image | {"hazy": self.files[image["name"]].image()}


def open_test_set(
    root: str,
    dataset: str = "folders",
    *,
    source: str = "folders",
    ids: tuple[int, int] | tuple[()] = (),
    frame: str = "nyu_mirrored",
    haze: HazeSpec | None = None,
    allow_missing: bool = False,
) -> TestSet:
    """Find, check and open the test images of a source (see `data.sources`).

    The findings of the check go to standard error. `ids`, `frame` and `haze` (None: RESIDE's) are for images
    with depth, which are made hazy here.

    Raises: ValueError if the set is incomplete (unless `allow_missing`), damaged or empty; OSError if it is
        missing.
    """
    data = open_data(
        source,
        root,
        ids=ids,
        frame=frame,
        dataset=dataset,
        split="test",
        allow_missing=allow_missing,
        thorough=True,
    )
    haze = haze or HazeSpec()
    about = {"source": source, "root": root, "dataset": dataset, "fingerprint": data.fingerprint}
    if data.report is None:
        about["summary"], left_out = f"{source} {root}".strip(), ()
        if ids:
            about["summary"] += f", ids {ids[0]}-{ids[1]}"
    else:
        about["summary"], left_out = data.report.summary, data.report.omitted
        if jax.process_index() == 0:
            print(data.report.text(), file=sys.stderr)
    if data.kind == "depth":
        about["haze"] = asdict(haze)
        (bright, brightest), (thin, thick) = haze.airlight, haze.beta
        about["summary"] += (
            f", made hazy with A {bright:g}…{brightest:g}, β {thin:g}…{thick:g}, seed {haze.seed}"
        )
    images = Evaluation(data, haze, process_index=jax.process_index(), process_count=jax.process_count())
    return TestSet(images, about, left_out)


def open_restored(hazy: str, clean: str, restored: str, *, allow_missing: bool = False) -> TestSet:
    """Images that another program restored, with their ground truth.

    With a folder `hazy`, every clean image must have as many restored images as it has hazy ones.

    Raises: as `open_test_set`.
    """
    test = open_test_set(f"{restored}|{clean}", allow_missing=allow_missing)
    if not hazy:
        return test
    wanted, found = (_partners_of_clean(folder, clean) for folder in (hazy, restored))
    lacking = tuple(
        f"{restored} has {found[name]} images for {name}, but {hazy} has {count}"
        for name, count in wanted.items()
        if found[name] < count
    )
    if lacking and not allow_missing:
        raise ValueError(
            f"{lacking[0]} ({len(lacking)} clean images lack restored ones); add them, or pass "
            "--allow-missing to score the rest"
        )
    return replace(test, left_out=test.left_out + lacking)


def open_results(root: str, test: TestSet) -> list[Method]:
    """A method for every folder METHOD of `root`, which holds METHOD/NAME.png for each hazy image NAME.

    Raises ValueError if `root` holds no folders, or a folder lacks an image of the test set.
    """
    methods = []
    for folder in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        files = {name: file for file in find_files(folder) for name in (file.path.name, file.stem)}
        if lacking := [name for name in test.images.data.names if name not in files]:
            raise ValueError(
                f"{folder}: expected a restored image for each of {test.images.total} hazy ones, named like "
                f"it; {len(lacking)} are missing, first {lacking[0]}"
            )
        images = RestoredElsewhere(test.images, files)
        methods.append(
            Method(folder.name, lambda restored: restored, facts={"results": str(folder)}, images=images)
        )
    if not methods:
        raise ValueError(f"{root}: expected a folder for each method, with its restored images, found none")
    return methods


def _partners_of_clean(folder: str, clean: str) -> Counter[str]:
    found, _ = pairs.find_pairs(f"{folder}|{clean}", "folders", progress=False)
    return Counter(pair.clean.name for pair in found)
