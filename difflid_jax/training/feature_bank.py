"""The features of whole images, computed once and kept, so that a step costs the network alone.

If the hazy images are fixed and every crop has the features of its whole image (`data.view`), the frozen
encoder sees the same images again and again. The bank holds its features for every image and its mirror
image, with each of a few noises; a crop draws one of them. An uncached run draws new noise for every crop.

Files: FOLDER/KEY/N.npy for `_CHUNK` elements each. The key covers images, weights, spec and seed. A file is
complete or absent, so an interrupted computation resumes.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from difflid_jax import parallel
from difflid_jax.atomic import atomic_write
from difflid_jax.data.augment import mirrored, reduced
from difflid_jax.data.items import digest
from difflid_jax.data.pipeline import signed
from difflid_jax.data.sources import DataSet
from difflid_jax.features.build import FrozenFeatures
from difflid_jax.features.h_space import HSpaceSpec

_CHUNK = 256  # elements in a file
_BATCH = 8  # images that the frozen network sees at once, each also mirrored and with every noise
_BITS = {2: np.uint16, 4: np.float32}  # NumPy's files know no bfloat16


@dataclasses.dataclass(frozen=True)
class FeatureBank:
    """The kept features of a data set, a `data.sources.Features`.

    shape, dtype: of one map (H',W',C'). contents: number of different h_content of an image, 1 if they are
    free of noise, else `noises`.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: str
    contents: int
    noises: int

    def draw(self, element: int, flip: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """'h_content' and 'h_haze', each (H',W',C'), of an image with one of the noises."""
        chunk, row = divmod(element, _CHUNK)
        maps = np.load(self.path(chunk), mmap_mode="r")[row, int(flip)]
        noise = int(rng.integers(self.noises))
        chosen = {"h_content": noise % self.contents, "h_haze": self.contents + noise}
        return {name: np.array(maps[n]).view(jnp.dtype(self.dtype)) for name, n in chosen.items()}

    def path(self, chunk: int) -> Path:
        """The file of a chunk: (elements, mirrored or not, contents + noises, H', W', C')."""
        return self.folder / f"{chunk}.npy"

    def has(self, chunk: int) -> bool:
        """Whether the file of a chunk is there and as long as its header says."""
        try:
            np.load(self.path(chunk), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return True

    def nbytes(self, elements: int) -> int:
        """Bytes of the features of this many elements."""
        values = 2 * (self.contents + self.noises) * math.prod(self.shape)
        return elements * values * jnp.dtype(self.dtype).itemsize


def map_of(features: FrozenFeatures, side: int) -> jax.ShapeDtypeStruct:
    """Shape (H',W',C') and type of h_content and h_haze of an image seen at side×side."""
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    content, _ = jax.eval_shape(features.apply, features.frozen, x, key)
    return jax.ShapeDtypeStruct(content.shape[1:], content.dtype)


def keep_features(
    data: DataSet, folder: Path, features: FrozenFeatures, spec: HSpaceSpec, *, noises: int, seed: int
) -> DataSet:
    """`data`, pairs, with the features of its hazy images, seen at `spec.side`; what is missing is computed.

    Processes that share `folder` share the work. Raises OSError if the disk has no room for it.
    """
    one = map_of(features, spec.side)
    # The hash of random weights names their seed alone, so the shapes tell their architecture.
    weights = features.sha256, [leaf.shape for leaf in jax.tree.leaves(features.frozen)]
    key = digest(data.fingerprint, weights, spec.to_dict(), str(one.dtype), noises, seed)
    is_free = spec.times[0] == 0 and not spec.noise_at_zero
    bank = FeatureBank(folder / key[:16], one.shape, str(one.dtype), 1 if is_free else noises, noises)
    bank.folder.mkdir(parents=True, exist_ok=True)
    compute = _compute(features.apply, bank, seed)
    chunks = range(-(-len(data) // _CHUNK))
    own = chunks[jax.process_index() :: jax.process_count()]
    for share in (own, chunks):  # all: those of processes that write into folders of their own
        missing = [chunk for chunk in share if not bank.has(chunk)]
        _check_room(bank, min(len(missing) * _CHUNK, len(data)))
        for chunk in tqdm(missing, "features of images", unit="file", disable=not missing):
            elements = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(data)))
            batches = [np.asarray(compute(features.frozen, *b)) for b in _views(data, elements, spec.side)]
            maps = np.concatenate(batches)[: 2 * len(elements)]
            maps = maps.reshape(len(elements), 2, *maps.shape[1:])
            with atomic_write(bank.path(chunk)) as temporary, temporary.open("wb") as file:
                np.save(file, maps.view(_BITS[maps.dtype.itemsize]))
        parallel.wait_for_all("features kept")
    return dataclasses.replace(data, features=bank)


def noise_key(seed: int, element: Any, flip: Any, noise: Any) -> jax.Array:
    """The key of a noise of an image, for `features.apply`."""
    key = jax.random.fold_in(jax.random.key(seed), element)
    return jax.random.fold_in(jax.random.fold_in(key, flip), noise)


def _compute(apply: Callable, bank: FeatureBank, seed: int) -> Callable:
    """(frozen, views (B,side,side,3) uint8, elements (B,), mirrored (B,)) → (B,maps,H',W',C'), jitted."""

    def of_one(frozen: Any, view: jax.Array, element: jax.Array, flip: jax.Array) -> jax.Array:
        def with_noise(noise: jax.Array) -> tuple[jax.Array, jax.Array]:
            content, haze = apply(frozen, signed(view)[None], noise_key(seed, element, flip, noise))
            return content[0], haze[0]

        content, haze = jax.vmap(with_noise)(jnp.arange(bank.noises))
        return jnp.concatenate([content[: bank.contents], haze])

    return jax.jit(jax.vmap(of_one, (None, 0, 0, 0)))


def _views(data: DataSet, elements: Sequence[int], side: int) -> Iterator[tuple[np.ndarray, ...]]:
    """(views, elements, mirrored) in batches of one size: each image, followed by its mirror image."""
    padded = [*elements, *[elements[-1]] * (-len(elements) % _BATCH)]
    for first in range(0, len(padded), _BATCH):
        part = padded[first : first + _BATCH]
        views = []
        for element in part:
            view = reduced(data.store.read(data.elements[element][0]), side)
            views += view, mirrored(view)
        yield np.stack(views), np.repeat(part, 2), np.tile([False, True], _BATCH)


def _check_room(bank: FeatureBank, elements: int) -> None:
    free, needed = shutil.disk_usage(bank.folder).free, bank.nbytes(elements)
    if needed > free:
        raise OSError(
            f"config.features.cache: {bank.folder} has {free / 1e9:.2f} GB free, but the features of "
            f"{elements:,} images with {bank.noises} noises need {needed / 1e9:.2f} GB; make room, or keep "
            "fewer noises"
        )
