"""The training of a diffusion prior: Eq. 4 with the bound that trains its variance, on images alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from difflid_jax.config import inputs
from difflid_jax.config.experiment import PriorExperiment
from difflid_jax.data.pipeline import Batches, signed
from difflid_jax.data.sources import DataSet
from difflid_jax.diffusion.objective import loss_by_time
from difflid_jax.diffusion.sampling import Sampler
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet
from difflid_jax.images.sheets import contact_sheet
from difflid_jax.training import runner
from difflid_jax.training.loss import diffusion_loss
from difflid_jax.training.runner import Task
from difflid_jax.training.start import first_parameters
from difflid_jax.weights import store

_SAMPLES = 16


def train(experiment: PriorExperiment, folder: Path) -> int:
    """Train an experiment in a run directory; return the exit status. See `runner.run`."""
    return runner.run("pretrain", experiment, lambda _, resuming: prepare(experiment, resuming), folder)


def prepare(experiment: PriorExperiment, resuming: bool) -> Task:
    """The task of an experiment, its inputs opened and checked. Raises ValueError or OSError."""
    spec = experiment.unet
    schedule = Schedule.named(spec.noise_schedule, spec.diffusion_steps)
    images = inputs.open_images(experiment.train)
    validation = inputs.open_images(experiment.validation) if experiment.validation.is_given else None
    graph, params, init = first_unet(experiment, resuming)
    image = jax.ShapeDtypeStruct((experiment.crop.size, experiment.crop.size, 3), jnp.uint8)
    encoder = store.shapes_of(nnx.eval_shape(lambda: UNet(spec, part="encoder", rngs=nnx.Rngs(0))))
    return Task(
        params=params,
        loss=diffusion_loss(graph, schedule, experiment.variance_weight, drops=spec.dropout > 0),
        arrays={"image": image},
        data={"train": images} | ({"validation": validation} if validation else {}),
        open_cached=lambda cache: inputs.open_images(experiment.train, cache),
        multiple=spec.stride,
        metric="loss",
        highest=False,
        uses_best=False,
        save=lambda *given: _save(experiment, graph, *given),
        evaluate=validation and _evaluation(experiment, graph, schedule, validation),
        init=init,
        summary={
            "data": f"{len(images):,} images, crops of {experiment.crop.size}",
            "trained": f"{optax.tree.size(params):,} parameters, "
            f"{sum(map(math.prod, encoder.values())):,} of them encoder and middle block",
        },
    )


def first_unet(experiment: PriorExperiment, resuming: bool = False) -> tuple[nnx.GraphDef, nnx.State, str]:
    """As `first_parameters`; a resumed run does not read `config.init` again."""

    def make() -> UNet:
        return UNet(experiment.unet, dtype=jnp.dtype(experiment.dtype), rngs=nnx.Rngs(experiment.seed))

    return first_parameters(make, experiment.unet, "unet", "" if resuming else experiment.init)


def _evaluation(
    experiment: PriorExperiment, graph: nnx.GraphDef, schedule: Schedule, images: DataSet
) -> Callable:
    """The loop's evaluate(params, interrupted): losses on held-out crops, and a sheet of samples.

    The crops, their noise and the samples' noise are the same at every evaluation and in every process.
    """
    size = experiment.crop.size
    crops = Batches(images, replace(experiment.crop, flip=False), min(experiment.batch_size, len(images)))
    measure = loss_by_time(graph, schedule)

    def evaluate(params, interrupted):
        params = jax.device_get(params)
        by_time: dict[int, list[float]] = {}
        batches = (signed(crops.make(number)["image"]) for number in range(experiment.batches))
        for t, loss in measure(params, batches):
            if interrupted():
                return None
            by_time.setdefault(t, []).append(loss)
        scores = {f"loss_t{t:03}": float(np.mean(found)) for t, found in by_time.items()}
        scores = {"loss": float(np.mean(list(scores.values()))), **scores}
        sampler = Sampler(nnx.merge(graph, params), schedule, steps=experiment.sample_steps)
        keys = jax.random.split(jax.random.key(0), _SAMPLES)
        drawn = np.asarray((sampler(keys, (size, size)) + 1) / 2)
        rows = [list(drawn[i : i + 4]) for i in range(0, _SAMPLES, 4)]
        return scores, np.asarray(contact_sheet(rows, max_width=size))

    return evaluate


def _save(
    experiment: PriorExperiment,
    graph: nnx.GraphDef,
    folder: Path,
    params: Any,
    step: int,
    scores: Mapping[str, float],
) -> None:
    """Write the U-Net's weights folder."""
    unet = nnx.merge(graph, params)
    store.save(
        folder, "unet", store.tensors_of(unet), unet.spec.to_dict(), config=experiment.fields, step=step
    )
