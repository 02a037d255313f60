"""Work on many files at once."""

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

S = TypeVar("S")
T = TypeVar("T")


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(
    task: Callable[[S], T],
    items: Iterable[S],
    words: str,
    progress: bool = True,
    *,
    unit: str = "file",
    threads: int = 0,
) -> list[T]:
    """The results of `task` for all items, in order; the first exception cancels the rest and is raised.

    A progress bar titled `words` appears on standard error if the work takes longer than a second.
    threads: size of the pool; 0: two per core, at most 16.
    """
    items = list(items)
    pool = ThreadPoolExecutor(threads or min(16, 2 * cores()))
    try:
        results = pool.map(task, items)
        options = {"unit": unit, "delay": 1, "file": sys.stderr, "disable": not progress}
        return list(tqdm(results, words, len(items), **options))
    finally:
        pool.shutdown(cancel_futures=True)
