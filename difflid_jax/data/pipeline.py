"""From pictures to batches: seeded crops, haze made on the fly, batches by process, resumable.

    elements ─ crop, flip (random by seed, element and epoch) ─ shuffle ─ repeat ─ batch ─ this process's part

The chain is a Grain `MapDataset`: what batch n holds depends on the seed and n alone, not on threads,
workers or the number of processes. So the state of an iterator is one number, and a run goes on bit for bit.

Batches are uint8 NHWC: a quarter of float32's bytes to the device, and haze made on the fly is rounded to
8 bits as the files of RESIDE are. `signed` brings them to the networks' [-1,1] inside the compiled step.
"""

import io
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grain.python as grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from difflid_jax.data.haze import scatter
from difflid_jax.data.sources import DataSet

_THREADS = 2  # per process or worker; each makes whole batches
_AHEAD = 4  # batches made ahead on the host
_ON_DEVICE = 2  # batches sent ahead to the device
_AUGMENTATION = 0x6A09E667  # keeps the augmentation's random numbers apart from the shuffle's


@dataclass(frozen=True)
class HazeSpec:
    """Haze made on the fly, I = J·t + A(1−t), t = exp(−β·d/max d); the defaults are RESIDE ITS.

    airlight, beta: ranges of A and β, drawn evenly for every crop (for every picture in evaluation).
    seed: of the haze of the evaluation pictures.
    The rest is off by default and never applies to evaluation pictures:
    tint: each channel of A is scaled by up to 1 ± tint (and held at 1).
    gamma: range of an exponent on the clean picture before haze, drawn evenly in its logarithm.
    noise: the largest standard deviation of Gaussian noise on the hazy picture, in [0,1] units.
    jpeg: range of JPEG qualities for half of the hazy crops; () is none.
    """

    airlight: tuple[float, float] = (0.7, 1.0)
    beta: tuple[float, float] = (0.6, 1.8)
    seed: int = 0
    tint: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    jpeg: tuple[int, ...] = ()

    def __post_init__(self):
        for name, low in (("airlight", 0.0), ("beta", 0.0), ("gamma", 1e-3)):
            span = getattr(self, name)
            if len(span) != 2 or not low <= span[0] <= span[1]:
                raise ValueError(f"haze.{name} must be two numbers {low:g} <= low <= high, not {span!r}")
        if self.airlight[1] > 1:
            raise ValueError(f"haze.airlight must be within [0, 1], not {self.airlight!r}")
        if not 0 <= self.tint < 1 or not 0 <= self.noise < 1:
            raise ValueError(f"haze.tint and haze.noise must be in [0, 1), not {self.tint!r}, {self.noise!r}")
        if self.jpeg and (len(self.jpeg) != 2 or not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100):
            raise ValueError(
                f"haze.jpeg must be () or two qualities 1 <= low <= high <= 100, not {self.jpeg!r}"
            )


@dataclass(frozen=True)
class CropSpec:
    """Random square crops.

    size: of the crop. flip: mirror half of the crops.
    scale: the picture is first resized by a factor drawn from this range, evenly in its logarithm (never so
        small that the crop no longer fits); (1, 1) is off.
    """

    size: int = 128
    flip: bool = True
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"the crop must be at least 1 pixel, not {self.size!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"the scale must be two numbers 0 < low <= high, not {self.scale!r}")


@dataclass
class _Augment:
    """Element → crops, {'hazy', 'clean'} or {'image'}, uint8 (size,size,3)."""

    data: DataSet
    crop: CropSpec
    haze: HazeSpec

    def __call__(self, element: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        positions = self.data.elements[element]
        window, flip = self._window(self.data.store.shape(positions[0]), rng)
        arrays = [self._read(position, window, flip) for position in positions]
        if self.data.kind == "images":
            return {"image": arrays[0]}
        if self.data.kind == "pairs":
            return {"hazy": arrays[0], "clean": arrays[1]}
        return _make_hazy(arrays[0], arrays[1], self.haze, rng)

    def _window(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[tuple[int, ...], bool]:
        side, (low, high) = self.crop.size, self.crop.scale
        if high != 1 or low != 1:
            side = round(side / math.exp(rng.uniform(math.log(low), math.log(high))))
            side = max(1, min(side, shape[0], shape[1]))
        top = int(rng.integers(shape[0] - side + 1))
        left = int(rng.integers(shape[1] - side + 1))
        return (top, left, side, side), bool(rng.integers(2)) and self.crop.flip

    def _read(self, position: int, window: tuple[int, ...], flip: bool) -> np.ndarray:
        array = self.data.store.window(position, *window)
        if window[2] != self.crop.size:
            array = _resize(array, self.crop.size)
        return _mirrored(array) if flip else array


def _make_hazy(
    clean: np.ndarray, depth: np.ndarray, spec: HazeSpec, rng: np.random.Generator, *, plain: bool = False
) -> dict[str, np.ndarray]:
    """clean uint8 (H,W,3) and depth uint16 (H,W) → a hazy and a clean picture of 8 bits."""
    beta, airlight = rng.uniform(*spec.beta), np.float32(rng.uniform(*spec.airlight))
    if spec.tint and not plain:
        tint = rng.uniform(1 - spec.tint, 1 + spec.tint, 3)
        airlight = np.minimum(airlight * tint, 1).astype(np.float32)
    if spec.gamma != (1.0, 1.0) and not plain:
        gamma = math.exp(rng.uniform(*map(math.log, spec.gamma)))
        clean = _rounded(np.power(np.arange(256, dtype=np.float32) / 255, gamma))[clean]
    # Not `add_haze`: the depth of a window is a part of its picture's, whose farthest point has 65535.
    t = np.exp(np.float32(-beta / 65535) * depth)
    hazy = scatter(clean * np.float32(1 / 255), t, airlight)
    if spec.noise and not plain:
        hazy = hazy + rng.standard_normal(hazy.shape, np.float32) * np.float32(rng.uniform(0, spec.noise))
    hazy = _rounded(hazy)
    if spec.jpeg and not plain and rng.integers(2):
        hazy = _through_jpeg(hazy, int(rng.integers(spec.jpeg[0], spec.jpeg[1] + 1)))
    return {"hazy": hazy, "clean": clean}


class _Shuffled(grain.MapDataset):
    """The elements of each epoch in an order drawn from (seed, epoch).

    In place of Grain's `shuffle`, which spends half a millisecond on an index of a small data set.
    """

    def __init__(self, parent: grain.MapDataset, seed: int):
        super().__init__(parent)
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        epoch, position = divmod(index, len(self))
        return self._parent[epoch * len(self) + int(self._order(epoch)[position])]

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            bits = np.random.Philox(key=[self._seed, epoch]).random_raw(len(self))
            order = np.argsort(bits, kind="stable")
            # Batches across the end of an epoch need two; threads may replace the dict at the same time.
            self._orders = {k: v for k, v in self._orders.items() if abs(k - epoch) <= 1} | {epoch: order}
        return order


class Batches:
    """An endless iterator of batches; `get_state`/`set_state` continue it exactly.

    Batch n of all processes together is the elements n·B … (n+1)·B of the shuffled epochs one after the
    other, so every element is seen once before any is seen again. This process's part is contiguous.

    Batches are dicts of uint8 (B,size,size,3): {'hazy', 'clean'}, or {'image'} for a data set of pictures
    alone. With `sharding` they are jax Arrays of the global batch, sent ahead of time; without, numpy arrays
    of this process's part.
    """

    def __init__(
        self,
        data: DataSet,
        crop: CropSpec,
        batch_size: int,
        *,
        haze: HazeSpec = HazeSpec(),
        seed: int = 0,
        workers: int = 0,
        sharding: jax.sharding.Sharding | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`batch_size` counts over all processes.

        Raises: ValueError for a batch that does not divide over the processes, or a picture smaller than
            the crop (the first is named).
        """
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"the batch of {batch_size} must divide evenly over {process_count} processes; "
                "change --config.data.batch_size"
            )
        _check_fits(data, crop.size)
        chain = grain.MapDataset.range(len(data))
        chain = chain.random_map(_Augment(data, crop, haze), seed=seed ^ _AUGMENTATION)
        chain = _Shuffled(chain, seed).repeat()
        self._chain = chain.batch(batch_size // process_count, batch_fn=_stack)
        self._part, self._parts = process_index, process_count
        self._fingerprint = data.fingerprint
        self._workers = workers
        self._sharding = sharding
        self._iterator = None
        self._ahead: deque = deque()
        self._next = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray | jax.Array]:
        if self._iterator is None:
            self._start()
        if self._sharding is None:
            batch = next(self._iterator)
        else:
            while len(self._ahead) < 1 + _ON_DEVICE:
                self._ahead.append(self._send(next(self._iterator)))
            batch = self._ahead.popleft()
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int | str]:
        """What `set_state` needs; plain values for JSON. What was made ahead does not count as taken."""
        return {"next_batch": self._next, "data": self._fingerprint}

    def set_state(self, state: dict[str, int | str]) -> None:
        """Go on as the iterator that gave `state` would have; workers and processes may differ.

        Raises: ValueError when the data set is another one.
        """
        if state["data"] != self._fingerprint:
            raise ValueError(
                "the data set is not the one of the checkpoint (other pictures, names or sizes), so the run "
                "cannot go on as it was; restore the data set, or start anew in another workdir"
            )
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """End threads and worker processes; the next batch starts them anew."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None
        self._ahead.clear()

    def _start(self) -> None:
        part = self._chain[self._next * self._parts + self._part :: self._parts]
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        dataset = part.to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read their own; a program's are parsed by now
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options)
        self._iterator = iter(dataset)

    def _send(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(self._sharding, array)
            for name, array in batch.items()
        }


@dataclass(frozen=True)
class Evaluation:
    """Whole pictures in a fixed order, each exactly once over all processes.

    Iterating gives {'name', 'index', 'hazy', 'clean'}, the pictures uint8 (H,W,3) of their own sizes, and
    indexing gives any of them, whichever process it is for. Haze made on the fly depends on (haze.seed,
    index) alone. `limit` > 0 takes only the first so many pictures.
    """

    data: DataSet
    haze: HazeSpec = field(default_factory=HazeSpec)
    limit: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.data.kind == "images":
            raise ValueError("pictures without a hazy or a depth partner cannot be scored")

    @property
    def total(self) -> int:
        """Pictures over all processes."""
        return min(self.limit, len(self.data)) if self.limit else len(self.data)

    def __len__(self) -> int:
        return len(range(self.process_index, self.total, self.process_count))

    def __getitem__(self, index: int) -> dict:
        return self._chain()[index]

    def __iter__(self) -> Iterator[dict]:
        chain = self._chain()[self.process_index :: self.process_count]
        iterator = iter(
            chain.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD))
        )
        try:
            yield from iterator
        finally:
            iterator.close()

    def _chain(self) -> grain.MapDataset:
        return grain.MapDataset.range(self.total).random_map(self._picture, seed=self.haze.seed)

    def _picture(self, element: int, rng: np.random.Generator) -> dict:
        first, second = (self.data.store.read(position) for position in self.data.elements[element])
        if self.data.kind == "pairs":
            pair = {"hazy": first, "clean": second}
        else:
            pair = _make_hazy(first, second, self.haze, rng, plain=True)
        return {"name": self.data.names[element], "index": element} | pair


def signed(images: jax.Array) -> jax.Array:
    """uint8 of 0…255 → float32 of [-1,1], for use inside a compiled step."""
    return (2 * images.astype(jnp.float32) - 255) / 255  # in this order 255 gives 1, compiled or not


def _check_fits(data: DataSet, size: int) -> None:
    small = [
        (data.names[i], shape)
        for i, positions in enumerate(data.elements)
        if min((shape := data.store.shape(positions[0]))[:2]) < size
    ]
    if small:
        name, (height, width, *_) = small[0]
        raise ValueError(
            f"the crop of {size}×{size} is larger than {len(small)} of {len(data)} pictures, first {name} "
            f"(height {height}, width {width}); choose a smaller crop or leave these pictures out"
        )


def _stack(elements: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([element[name] for element in elements]) for name in elements[0]}


def _mirrored(array: np.ndarray) -> np.ndarray:
    """Left to right. Channel by channel: copying a reversed view moves single bytes, six times slower."""
    if array.ndim == 2:
        return array[:, ::-1]
    out = np.empty(array.shape, array.dtype)
    for channel in range(array.shape[2]):
        out[..., channel] = array[:, ::-1, channel]
    return out


def _resize(array: np.ndarray, size: int) -> np.ndarray:
    """A square window to size×size, anti-aliased; uint16 depth through float32."""
    if array.ndim == 3:
        return np.asarray(Image.fromarray(array).resize((size, size), Image.BICUBIC))
    picture = Image.fromarray(array.astype(np.float32))
    return np.asarray(picture.resize((size, size), Image.BILINEAR))


def _rounded(image: np.ndarray) -> np.ndarray:
    """[0,1] → uint8, clamped."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))
