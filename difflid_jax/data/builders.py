"""The data sets of `pairing.layouts` in TFDS format (`array_record`, encoded images).

    import difflid_jax.data.builders
    builder = tfds.builder("dehazing_pairs/sots_indoor", data_dir=…, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=ROOT))

or `python -m difflid_jax.check_data ROOT --dataset=sots_indoor --tfds=DATA_DIR`. TensorFlow is not used.

An example is (name, hazy, clean), in the order of `pairs.find_pairs`. An 8-bit RGB PNG or JPEG keeps the
bytes of its file; any other image (a border to cut, grey, another format) is stored as PNG. A decoded
example has the pixels of `pairs.load_pair`. Names and sizes are also in the metadata, so that listing a data
set reads no image. A clean image is stored with each of its hazy partners.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from difflid_jax.data.files import File
from difflid_jax.data.items import digest
from difflid_jax.data.pairing.layouts import LAYOUTS, layout_of
from difflid_jax.data.pairing.pairs import Pair, check_or_raise, find_parts, load_clean
from difflid_jax.images.codecs import encoded
from difflid_jax.images.files import decode_image, read_header, read_image

_ENCODED = {"hazy": tfds.decode.SkipDecoding(), "clean": tfds.decode.SkipDecoding()}


class DehazingPairs(tfds.core.GeneratorBasedBuilder):
    """Hazy (or dark) images with their clean partners; one config per data set of `layouts.LAYOUTS`."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=n, description=v.title) for n, v in LAYOUTS.items()]  # noqa: RUF012
    # Nothing is downloaded, so there are no checksums next to the code. TFDS 4.9 would search for them
    # through importlib_resources, which it does not depend on.
    code_path = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get the data set from its authors and give its folder as manual_dir; "
        "`python -m difflid_jax.check_data ROOT --dataset NAME` checks it."
    )

    def __init__(self, *, allow_missing: bool = False, file_format: str = "array_record", **options):
        self._allow_missing = allow_missing
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3), dtype=np.uint8)
        features = {"name": tfds.features.Text(), "hazy": image, "clean": image}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.builder_config.description}: degraded images and their ground truth.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("hazy", "clean"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        dataset = self.builder_config.name
        splits = {}
        for pairs, report in find_parts(dl_manager.manual_dir, dataset, thorough=True):
            check_or_raise(report, allow_missing=self._allow_missing)
            split = report.split or layout_of(dataset).only_split
            self.info.metadata[split] = {"pairs": _listing(pairs), "source": _fingerprint(pairs)}
            splits[split] = self._generate_examples(pairs)
        return splits

    def _generate_examples(self, pairs: list[Pair]) -> Iterator[tuple[int, dict]]:
        for index, pair in enumerate(pairs):
            hazy = _as_stored(pair.hazy) or encoded(read_image(pair.hazy), "PNG")
            clean = (None if pair.crop else _as_stored(pair.clean)) or encoded(load_clean(pair), "PNG")
            yield index, {"name": pair.name, "hazy": hazy, "clean": clean}


def build(
    root: str | os.PathLike, dataset: str, data_dir: str | os.PathLike, *, allow_missing: bool = False
) -> Path:
    """Write a data set under `data_dir` and return its folder; a finished build of the same files is kept.

    Raises: ValueError for what `check_or_raise` refuses, for a list of pairs instead of a folder, and if
    `data_dir` contains a build of other files; FileNotFoundError if `root` does not exist.
    """
    if not Path(root).is_dir():
        Path(root).stat()
        raise ValueError(f"{root}: TFDS takes a folder that is or holds the data set")
    builder = DehazingPairs(config=dataset, data_dir=os.fspath(data_dir), allow_missing=allow_missing)
    folder = Path(builder.data_path)
    if folder.exists():
        parts = find_parts(root, dataset)
        sources = {r.split or layout_of(dataset).only_split: _fingerprint(pairs) for pairs, r in parts}
        built = {split: part["source"] for split, part in builder.info.metadata.items()}
        if built != sources:
            raise ValueError(f"{folder}: holds a build of other files; remove it, or name another folder")
        return folder
    config = tfds.download.DownloadConfig(manual_dir=os.fspath(root))
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_config=config)
    return folder


@dataclass(frozen=True)
class BuiltImage:
    """One image of a built data set: an `Item` of the cache."""

    folder: Path
    split: str
    index: int
    role: str
    height: int
    width: int
    dtype: str = "uint8"

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.split}/{self.index} ({self.role})"

    @property
    def key(self) -> str:
        shard = File(_shard(self.folder, self.split, self.index))
        return digest("tfds", shard.digest(), self.split, self.index, self.role)

    def shape(self) -> tuple[int, ...]:
        return self.height, self.width, 3

    def load(self) -> np.ndarray:
        """uint8 (H,W,3). Raises: ValueError naming the folder and place for a damaged build."""
        image = decode_image(_source(self.folder, self.split)[self.index][self.role], self.name)
        if image.shape != self.shape():
            raise ValueError(f"{self.folder}: {self.name} does not have the recorded size; build it again")
        return image


def find_built(
    root: str | os.PathLike, dataset: str, split: str | None = None
) -> list[tuple[str, BuiltImage, BuiltImage]]:
    """(name, hazy, clean) of every pair of a built data set, in the order of `pairs.find_pairs`.

    root: the `data_dir` of `build`, or a folder below it down to the version.
    split: ignored for a data set with a single split.

    A clean image that several pairs share is the same `BuiltImage`.

    Raises: FileNotFoundError or ValueError if there is no such data set or split.
    """
    folder = _version_folder(Path(root), dataset)
    metadata = _open(folder).info.metadata or {}
    if len(metadata) == 1:
        (split,) = metadata
    if split not in metadata:
        raise ValueError(f"{folder}: no split {split!r}; it has: {', '.join(metadata)}")
    found = []
    for index, (name, height, width, first) in enumerate(metadata[split]["pairs"]):
        hazy = BuiltImage(folder, split, index, "hazy", height, width)
        found.append((name, hazy, BuiltImage(folder, split, first, "clean", height, width)))
    return found


def _version_folder(root: Path, dataset: str) -> Path:
    layout_of(dataset)
    if not root.exists():
        raise FileNotFoundError(2, "no such folder (of a TFDS data set)", str(root))
    version = str(DehazingPairs.VERSION)
    below = ("", version, f"{dataset}/{version}", f"dehazing_pairs/{dataset}/{version}")
    for folder in (root / part for part in below):
        if (folder / "dataset_info.json").is_file():
            if _open(folder).info.config_name != dataset:
                raise ValueError(f"{folder}: holds {_open(folder).info.config_name}, expected {dataset}")
            return folder
    raise ValueError(
        f"{root}: no TFDS build of {dataset} (version {version}) here; "
        f"make it with python -m difflid_jax.check_data ROOT --dataset {dataset} --tfds {root}"
    )


@functools.lru_cache(maxsize=16)
def _open(folder: Path):
    return tfds.builder_from_directory(os.fspath(folder))


@functools.lru_cache(maxsize=16)
def _source(folder: Path, split: str):
    return _open(folder).as_data_source(split, decoders=_ENCODED)


def _shard(folder: Path, split: str, index: int) -> Path:
    info = _open(folder).info.splits[split]
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        if index < length:
            return Path(path)
        index -= length
    raise IndexError(index)


def _as_stored(path: Path) -> bytes | None:
    header = read_header(path)
    if header.kind == "rgb" and header.orientation == 1 and header.format in ("PNG", "JPEG"):
        return path.read_bytes()
    return None


def _listing(pairs: list[Pair]) -> list[list]:
    """[name, height, width, index of the first pair with the same clean image] of every pair."""
    first: dict[tuple, int] = {}
    rows = []
    for index, pair in enumerate(pairs):
        header = read_header(pair.hazy)
        place = first.setdefault((pair.clean, pair.crop), index)
        rows.append([pair.name, header.height, header.width, place])
    return rows


def _fingerprint(pairs: list[Pair]) -> str:
    return digest(
        *((pair.name, File(pair.hazy).digest(), File(pair.clean).digest(), pair.crop) for pair in pairs)
    )
