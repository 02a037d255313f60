"""The training of a decoder D_t of h-space (Eq. 5, Fig. 2) on clean images alone, and what it decodes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float32

from difflid_jax.config import identity
from difflid_jax.data.augment import RESIDE, CropSpec
from difflid_jax.data.sources import DataSet
from difflid_jax.evaluation.probes import Pairs
from difflid_jax.features.h_space import HSpaceSpec, layers_at
from difflid_jax.features.prior import Prior
from difflid_jax.network.decoder import Decoder, DecoderSpec
from difflid_jax.training import runner
from difflid_jax.training.loss import decoder_loss
from difflid_jax.training.runner import Task
from difflid_jax.training.spec import RunSpec
from difflid_jax.weights import store

_IMAGES = 8  # decoded together


@dataclass(frozen=True, kw_only=True)
class DecoderExperiment(RunSpec):
    """The training of D_t on h of `layer` at the timestep `t`, of images of crop.size × crop.size."""

    prior: str
    layer: str
    t: int
    width: int


def experiment(
    *,
    prior: str,
    layer: str,
    t: int,
    side: int,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    width: int,
) -> DecoderExperiment:
    """The experiment of these settings; a cosine schedule, and a checkpoint every 500 steps."""
    HSpaceSpec(times=(t, t), layer=layer, side=side)  # refuses what is out of range
    optimizer = {"learning_rate": learning_rate, "schedule": "cosine"}
    loop = {"log_every": 25, "checkpoint_every": 500}
    fields = {
        "seed": seed,
        "prior": prior,
        "features": {"layer": layer, "t": t, "side": side},
        "decoder": {"width": width},
        "data": {"batch_size": batch_size},
        "optimizer": optimizer,
        "training": {"steps": steps, **loop},
    }
    return DecoderExperiment(
        fields=fields,
        fingerprint=identity.fingerprint(fields),
        ending=identity.ending(fields),
        shared_fields=identity.shared(fields),
        differences=lambda text: identity.differences(fields, identity.read_json(text), fields),
        seed=seed,
        init="",
        crop=CropSpec(size=side),
        haze=RESIDE,
        batch_size=batch_size,
        workers=0,
        cache="off",
        epochs=0,
        steps=steps,
        halve_every_epochs=1,
        keep=1,
        fsdp=False,
        tensorboard=False,
        optimizer_fields=optimizer,
        loop_fields=loop,
        prior=prior,
        layer=layer,
        t=t,
        width=width,
    )


def train(run: DecoderExperiment, prior: Prior, images: DataSet, folder: Path) -> int:
    """Train a decoder in a run directory, on images alone; return the exit status. See `runner.run`."""
    inputs = {"prior_sha256": prior.sha256, "images": images.fingerprint}
    run = replace(run, ending=run.ending | inputs)
    return runner.run("study", run, lambda mesh, resuming: _prepare(run, prior, images), folder)


def _prepare(run: DecoderExperiment, prior: Prior, images: DataSet) -> Task:
    spec = decoder_spec(prior, run.layer, run.crop.size, run.width)
    graph, params = nnx.split(Decoder(spec, rngs=nnx.Rngs(run.seed)))
    unet, parameters = nnx.split(prior.unet)

    def features(frozen: Any, y: jax.Array, key: jax.Array) -> jax.Array:
        # The timestep is a part of the frozen arguments, so that all decoders share one compiled step.
        parameters, at = frozen
        model = nnx.merge(unet, parameters)
        return layers_at(model, prior.schedule, y, key, at, [run.layer])[run.layer][:, 0]

    def save(folder: Path, params: Any, step: int, scores: Any) -> None:
        store.save(
            folder,
            "decoder",
            store.tensors_of(nnx.merge(graph, params)),
            spec.to_dict(),
            prior=run.prior,
            prior_sha256=prior.sha256,
            config=run.fields,
            step=step,
        )

    return Task(
        params=params,
        loss=decoder_loss(graph, features),
        arrays={"image": jax.ShapeDtypeStruct((run.crop.size, run.crop.size, 3), jnp.uint8)},
        data={"train": images},
        open_cached=lambda _: images,
        multiple=prior.unet.spec.stride,
        metric="loss",
        highest=False,
        uses_best=False,
        save=save,
        frozen=(parameters, jnp.asarray([run.t], jnp.int32)),
        inputs={"prior_sha256": prior.sha256},
        summary={
            "data": f"{len(images):,} clean images of {run.crop.size}×{run.crop.size}",
            "decoder": f"width {spec.width}, {spec.stages} stages, t = {run.t}, layer {run.layer}",
        },
    )


def decoder_spec(prior: Prior, layer: str, side: int, width: int) -> DecoderSpec:
    """The decoder of a layer's maps of images of side×side.

    Raises ValueError for a side or a layer that the U-Net does not have.
    """
    HSpaceSpec(layer=layer, side=side).multiple(prior.unet.spec)
    x, key = jnp.zeros((1, side, side, 3)), jax.random.key(0)
    at = np.zeros(1, np.int32)
    h = jax.eval_shape(lambda: layers_at(prior.unet, prior.schedule, x, key, at, [layer])[layer])
    rows, channels = h.shape[2], h.shape[-1]
    return DecoderSpec(channels, stages=(side // rows).bit_length() - 1, width=width)


def load_decoder(folder: Path) -> Decoder:
    """The trained decoder of a weights folder. Raises ValueError or OSError for a bad or missing one."""
    weights = store.read(folder, "decoder")
    spec = weights.spec(DecoderSpec)
    decoder = nnx.eval_shape(lambda: Decoder(spec, rngs=nnx.Rngs(0)))
    store.fill(decoder, weights.tensors, where=str(weights.path), dtype=jnp.float32)
    return decoder


def reconstructor(
    prior: Prior, pairs: Pairs, layer: str, seed: int
) -> Callable[[Decoder, int], Float32[np.ndarray, "2 n side side 3"]]:
    """(D_t, t) → (r_t^haz, r_t^cle), in [0,1], of all pairs; each image has the same noise at all t."""
    unet, parameters = nnx.split(prior.unet)

    @partial(jax.jit, static_argnums=1)
    def run(parameters, graph, params, images, key, at):
        h = layers_at(nnx.merge(unet, parameters), prior.schedule, images, key, at, [layer])[layer][:, 0]
        return jnp.clip((nnx.merge(graph, params)(h) + 1) / 2, 0, 1)

    def reconstruct(decoder: Decoder, t: int) -> np.ndarray:
        graph, params = nnx.split(decoder)
        images, found = np.concatenate([pairs.hazy, pairs.clean]), []
        for first in range(0, len(images), _IMAGES):
            chosen = np.minimum(np.arange(first, first + _IMAGES), len(images) - 1)
            key = jax.random.fold_in(jax.random.key(seed), first)
            found.append(run(parameters, graph, params, images[chosen], key, np.asarray([t], np.int32)))
        return np.concatenate(found)[: len(images)].reshape(2, *pairs.clean.shape)

    return reconstruct
