"""What every training run has, whether of a restorer or of a prior: images, batches, length, optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from difflid_jax.data.augment import CropSpec, HazeSpec
from difflid_jax.training.loop import LoopSpec
from difflid_jax.training.optimizer import OptimizerSpec
from difflid_jax.weights import schema


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run, resolved from its config.

    fields: the whole config as plain values, for config.json and the weights' metadata.
    fingerprint: names the fields that decide the trained weights; equal fingerprints train equal weights.
    differences: the text of another run's config.json → what differs from it, one line a field.
    ending: the fields that decide when the run is finished. shared_fields: name → value of the fields that
    all processes of a run must agree on; the others may differ, such as paths.
    init: weights to start from, '' for random ones. cache: folder of the decoded cache, '' for
    WORKDIR/cache, 'off' for none. batch_size counts over all devices and processes. epochs counts if `steps`
    is 0. minutes: stop after this long (0: no limit). keep: number of checkpoints. fsdp: shard the frozen
    network over the devices. optimizer_fields: those of `OptimizerSpec` that are not lengths in epochs.
    loop_fields: those of `LoopSpec` that the config gives. later: (first step, the run as if it were so from
    the start) for each part in which crops, haze or loss differ from what they were.
    """

    fields: Mapping[str, Any]
    fingerprint: str
    differences: Callable[[str], list[str]]
    ending: Mapping[str, Any]
    shared_fields: Mapping[str, Any]
    seed: int
    init: str
    crop: CropSpec
    haze: HazeSpec
    batch_size: int
    workers: int
    cache: str
    epochs: int
    steps: int
    halve_every_epochs: int
    keep: int
    fsdp: bool
    tensorboard: bool
    optimizer_fields: Mapping[str, Any]
    loop_fields: Mapping[str, Any]
    later: tuple[tuple[int, "RunSpec"], ...] = ()

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to 2³²−1, found {self.seed}")
        least = {
            "data.batch_size": (self.batch_size, 1),
            "data.workers": (self.workers, 0),
            "optimizer.halve_every_epochs": (self.halve_every_epochs, 1),
            "training.epochs": (self.epochs, 0 if self.steps else 1),
            "training.steps": (self.steps, 0),
            "training.keep": (self.keep, 1),
        }
        for field, (value, lowest) in least.items():
            schema.check_least(field, value, lowest)
        # Their own ranges do not depend on the number of elements.
        self.optimizer(1), self.loop(1)

    def steps_per_epoch(self, elements: int) -> int:
        """ceil(elements / batch size), as the paper's authors count them."""
        return -(-elements // self.batch_size)

    def total_steps(self, elements: int) -> int:
        """Length of the whole schedule in steps."""
        return self.steps or self.epochs * self.steps_per_epoch(elements)

    def optimizer(self, elements: int) -> OptimizerSpec:
        """The optimizer of a run over this many training elements."""
        return OptimizerSpec(
            steps=self.total_steps(elements),
            halve_every=self.halve_every_epochs * self.steps_per_epoch(elements),
            **self.optimizer_fields,
        )

    def loop(self, elements: int, *, flops: float = 0.0, peak: float = 0.0) -> LoopSpec:
        """The loop of a run over this many training elements; see `LoopSpec` for `flops` and `peak`."""
        return LoopSpec(
            steps=self.total_steps(elements),
            batch_size=self.batch_size,
            flops=flops,
            peak=peak,
            **self.loop_fields,
        )
