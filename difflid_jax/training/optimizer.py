"""Adam with the paper's schedule: 2e-4, halved every 300 of 1,200 epochs (Sec. 5.1).

The learning rate is a function of the training step and not of the optimiser's own count, so that a step
whose update was skipped still counts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """How the parameters follow the gradients; all lengths in steps.

    `schedule` is 'halve' (by two, every `halve_every` steps), 'cosine' (to zero at `steps`) or 'constant'.
    `clip` is the greatest global norm of the gradients, `ema` the decay of the averaged parameters; 0 means
    none of either.
    """

    steps: int
    halve_every: int
    learning_rate: float = 2e-4
    b1: float = 0.9
    b2: float = 0.999
    schedule: str = "halve"
    warmup_steps: int = 0
    clip: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0


def learning_rate(spec: OptimizerSpec, step: jax.Array) -> jax.Array:
    """The rate that the update of `step` (counted from 0) is made with, float32."""
    step = jnp.asarray(step, jnp.float32)
    if spec.schedule == "halve":
        factor = 0.5 ** jnp.floor(step / spec.halve_every)
    elif spec.schedule == "cosine":
        factor = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / spec.steps, 1)))
    elif spec.schedule == "constant":
        factor = jnp.ones_like(step)
    else:
        raise ValueError(f"schedule: expected 'halve', 'cosine' or 'constant', found {spec.schedule!r}")
    if spec.warmup_steps:
        factor = factor * jnp.minimum((step + 1) / spec.warmup_steps, 1)
    return spec.learning_rate * factor


def direction(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Gradients to the update direction, still to be scaled by minus the learning rate.

    Weight decay is decoupled (AdamW); the paper uses none.
    """
    return optax.chain(
        optax.clip_by_global_norm(spec.clip) if spec.clip else optax.identity(),
        optax.scale_by_adam(b1=spec.b1, b2=spec.b2),
        optax.add_decayed_weights(spec.weight_decay) if spec.weight_decay else optax.identity(),
    )


def update_ema(spec: OptimizerSpec, average: Any, params: Any, step: jax.Array) -> Any:
    """The exponential moving average of the parameters after `step`.

    The decay rises as (1 + step) / (10 + step) up to `spec.ema`, so that the random start is forgotten.
    """
    decay = jnp.minimum(spec.ema, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, new: mean + (1 - decay) * (new - mean), average, params)
