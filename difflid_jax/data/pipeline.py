"""From images to batches: seeded crops, haze made on the fly, batches by process, resumable.

    elements ─ crop, flip (random by seed, element and epoch) ─ shuffle ─ repeat ─ batch ─ this process's part

The chain is a Grain `MapDataset`: batch n depends on the seed and n alone, not on threads, workers or the
number of processes. So the state of an iterator is one number, and a resumed run continues bit for bit.

Batches are uint8 NHWC: a quarter of float32's bytes to the device, and haze made on the fly is rounded to
8 bits like RESIDE's files. `signed` converts them to the networks' [-1,1] inside the compiled step.
"""

import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from difflid_jax.data.augment import RESIDE, Augment, CropSpec, HazeSpec, check_seed, make_hazy
from difflid_jax.data.shuffle import Shuffled
from difflid_jax.data.sources import DataSet
from difflid_jax.data.threads import cores

_THREADS = max(2, min(8, cores() // 2))  # each makes whole batches
_EPOCHS = 10**9  # endless, but lengths and slices must fit in 64 bits
_THREADS_OF_WORKER = 2
_ON_DEVICE = 2  # batches sent ahead to the device
_PER_WORKER = 2  # batches that a worker prepares ahead
_SHARED_MEMORY = "/dev/shm"
_WORKER_PATIENCE = 5.0  # seconds between a SIGTERM and the end of a worker
_AUGMENTATION = 0x6A09E667  # keeps the augmentation's random numbers apart from the shuffle's


class Batches:
    """An endless iterator of batches; `get_state` and `set_state` resume it exactly.

    Batch n of all processes together is the elements n·B … (n+1)·B of the shuffled epochs in sequence, so
    every element is seen once before any is seen again. This process's part is contiguous.

    Batches are dicts of uint8 (B,size,size,3): {'hazy', 'clean'}, or {'image'} for a data set of images
    alone. With `sharding` they are jax Arrays of the global batch, sent ahead of time; otherwise numpy
    arrays of this process's part.
    """

    def __init__(
        self,
        data: DataSet,
        crop: CropSpec,
        batch_size: int,
        *,
        haze: HazeSpec = RESIDE,
        later: Sequence[tuple[int, CropSpec, HazeSpec]] = (),
        seed: int = 0,
        workers: int = 0,
        sharding: jax.sharding.Sharding | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`batch_size` counts over all processes. later: (first batch, crop, haze) of the batches from there
        on, in order; crops have one size.

        Raises: ValueError for a batch that does not divide over the processes, or an image smaller than the
            crop (the first is named); OSError if shared memory is too small for the workers.
        """
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"the batch of {batch_size} must divide evenly over {process_count} processes; "
                "change --config.data.batch_size"
            )
        check_seed(seed)
        _check_fits(data, crop.size)
        size = batch_size // process_count

        def batches(crop: CropSpec, haze: HazeSpec) -> grain.MapDataset:
            chain = grain.MapDataset.range(len(data))
            chain = chain.random_map(Augment(data, crop, haze), seed=seed ^ _AUGMENTATION)
            return Shuffled(chain, seed).repeat(_EPOCHS).batch(size, batch_fn=_stack)

        if workers:
            sample = Augment(data, crop, haze)(0, np.random.default_rng(seed))
            _check_shared_memory(workers, size * sum(array.nbytes for array in sample.values()))
        self._chain = batches(crop, haze)
        for first, *specs in later:
            parts = first * process_count
            self._chain = grain.MapDataset.concatenate([self._chain[:parts], batches(*specs)[parts:]])
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
            batch = self._receive()
        else:
            while len(self._ahead) < 1 + _ON_DEVICE:
                self._ahead.append(self._send(self._receive()))
            batch = self._ahead.popleft()
        self._next += 1
        return batch

    def make(self, number: int) -> dict[str, np.ndarray]:
        """This process's part of batch `number`, made by the calling thread; the iterator is unaffected."""
        return self._chain[number * self._parts + self._part]

    def get_state(self) -> dict[str, int | str]:
        """The input of `set_state`, plain values for JSON. Batches made ahead do not count as taken."""
        return {"next_batch": self._next, "data": self._fingerprint}

    def set_state(self, state: dict[str, int | str]) -> None:
        """Continue as the iterator that returned `state` would; workers and processes may differ.

        Raises: ValueError for another data set.
        """
        if state["data"] != self._fingerprint:
            raise ValueError(
                "the data set is not that of the checkpoint (images, names or their preparation differ), so "
                "the run cannot be resumed; restore the data set, or start a new run in another workdir"
            )
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """End threads and worker processes; the next batch starts them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None
        self._ahead.clear()

    def _start(self) -> None:
        part = self._chain[self._next * self._parts + self._part :: self._parts]
        dataset = part.to_iter_dataset(_reading(_THREADS_OF_WORKER if self._workers else _THREADS))
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers read their own; a program's are parsed by now
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=_PER_WORKER
            )
            dataset = dataset.mp_prefetch(options, _prepare_worker)
        self._iterator = iter(dataset)

    def _receive(self) -> dict[str, np.ndarray]:
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            message = (
                f"an input worker died ({' '.join(str(error).split())}); exit code -7 means that "
                f"{_SHARED_MEMORY} is full, -9 that memory ran out: lower --config.data.workers (0: none)"
            )
            raise OSError(message) from error

    def _send(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            name: jax.make_array_from_process_local_data(self._sharding, array)
            for name, array in batch.items()
        }


@dataclass(frozen=True)
class Evaluation:
    """Whole images in a fixed order, each exactly once over all processes.

    Iteration yields {'name', 'index', 'hazy', 'clean'}, images uint8 (H,W,3) of their own sizes; indexing
    returns any of them, in any process. Haze made on the fly depends on (haze.seed, index) alone. `limit` > 0
    uses only that many images.
    """

    data: DataSet
    haze: HazeSpec = RESIDE
    limit: int = 0
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if self.data.kind == "images":
            raise ValueError("images without a hazy or a depth partner cannot be scored")

    @property
    def total(self) -> int:
        """The number of images over all processes."""
        return min(self.limit, len(self.data)) if self.limit else len(self.data)

    def __len__(self) -> int:
        return len(range(self.process_index, self.total, self.process_count))

    def __getitem__(self, index: int) -> dict:
        return self._chain()[index]

    def __iter__(self) -> Iterator[dict]:
        chain = self._chain()[self.process_index :: self.process_count]
        iterator = iter(chain.to_iter_dataset(_reading(_THREADS)))
        try:
            yield from iterator
        finally:
            iterator.close()

    def _chain(self) -> grain.MapDataset:
        return grain.MapDataset.range(self.total).random_map(self._image, seed=self.haze.seed)

    def _image(self, element: int, rng: np.random.Generator) -> dict:
        first, second = (self.data.store.read(position) for position in self.data.elements[element])
        if self.data.kind == "pairs":
            pair = {"hazy": first, "clean": second}
        else:
            pair = make_hazy(first, second, self.haze, rng, plain=True)
        return {"name": self.data.names[element], "index": element} | pair


def signed(images: jax.Array) -> jax.Array:
    """uint8 in 0…255 → float32 in [-1,1], for use inside a compiled step."""
    return (2 * images.astype(jnp.float32) - 255) / 255  # in this order 255 gives 1, compiled or not


def _reading(threads: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)


def _prepare_worker(index: int, count: int) -> None:
    """Make a worker ignore signals meant for its program, and end whenever the program ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # After a SIGTERM to the whole job the program still needs batches while it saves; but one that the
    # program itself sends at its exit must not be ignored for ever.
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(_WORKER_PATIENCE, os._exit, (0,)).start())

    def follow() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def _check_fits(data: DataSet, size: int) -> None:
    small = [
        (data.names[i], shape)
        for i, positions in enumerate(data.elements)
        if min((shape := data.store.shape(positions[0]))[:2]) < size
    ]
    if small:
        name, (height, width, *_) = small[0]
        raise ValueError(
            f"the crop of {size}×{size} is larger than {len(small)} of {len(data)} images, first {name} "
            f"(height {height}, width {width}); choose a smaller crop or remove these images"
        )


def _check_shared_memory(workers: int, batch: int) -> None:
    """Raise OSError if the workers' batches, of `batch` bytes each, do not fit in shared memory."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    needed = workers * (_PER_WORKER + 2) * batch  # two more: one being written, one being read
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise OSError(
            f"{_SHARED_MEMORY} has {free / 1e6:.0f} MB free, but the batches of {workers} workers need "
            f"{needed / 1e6:.0f} MB; lower --config.data.workers (0: none), or enlarge it (docker run "
            "--shm-size=2g)"
        )


def _stack(elements: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([element[name] for element in elements]) for name in elements[0]}
