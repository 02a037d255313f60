"""The pictures that are scored: found, checked and said what they are, before anything is computed."""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from difflid_jax.data.pairing import pairs
from difflid_jax.data.pipeline import Evaluation, HazeSpec
from difflid_jax.data.sources import open_data


@dataclass(frozen=True)
class TestSet:
    """Pictures to score (this process's share), what a report says about them, and what is not among them."""

    __test__ = False  # no test class, whatever pytest makes of the name

    pictures: Evaluation
    about: dict[str, Any]
    left_out: tuple[str, ...] = ()


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
    """Find, check and open the test pictures of a source (see `data.sources`).

    What the check found goes to standard error. `ids`, `frame` and `haze` (None: RESIDE's) are for images
    with depth, which are made hazy here.

    Raises: ValueError where the set is not whole (unless `allow_missing`), is broken, or holds nothing;
        OSError where it is not there.
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
    pictures = Evaluation(data, haze, process_index=jax.process_index(), process_count=jax.process_count())
    return TestSet(pictures, about, left_out)


def open_restored(hazy: str, clean: str, restored: str, *, allow_missing: bool = False) -> TestSet:
    """Pictures that some other program restored, against their ground truth.

    With a folder `hazy`, every clean picture must have as many restored ones as it has hazy ones.

    Raises: as `open_test_set`.
    """
    test = open_test_set(f"{restored}|{clean}", allow_missing=allow_missing)
    if not hazy:
        return test
    wanted, found = (_partners_of_clean(folder, clean) for folder in (hazy, restored))
    lacking = tuple(
        f"{restored} has {found[name]} pictures for {name}, {hazy} has {count}"
        for name, count in wanted.items()
        if found[name] < count
    )
    if lacking and not allow_missing:
        raise ValueError(
            f"{lacking[0]} ({len(lacking)} clean pictures lack restored ones); add them, or pass "
            "--allow-missing to score the rest"
        )
    return replace(test, left_out=test.left_out + lacking)


def _partners_of_clean(folder: str, clean: str) -> Counter[str]:
    found, _ = pairs.find_pairs(f"{folder}|{clean}", "folders", progress=False)
    return Counter(pair.clean.name for pair in found)
