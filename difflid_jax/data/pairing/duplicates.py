"""Equal files under several names."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def same_content(files: Iterable[Path]) -> list[list[Path]]:
    """Groups of at least two different paths whose files are equal byte by byte, in the order of `files`.

    Only files of equal length are read.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(files):
        by_size[os.stat(path).st_size].append(path)
    by_content: dict[bytes, list[Path]] = defaultdict(list)
    for paths in by_size.values():
        if len(paths) > 1:
            for path in paths:
                with open(path, "rb") as file:
                    by_content[hashlib.file_digest(file, "blake2b").digest()].append(path)
    return [paths for paths in by_content.values() if len(paths) > 1]
