"""Adam with the paper's schedule: 2e-4, halved every 300 of 1,200 epochs (Sec. 5.1).

The learning rate is a function of the training step, not of the optimizer's own count, so a step whose update
was skipped still counts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from difflid_jax.weights import schema

SCHEDULES = ("halve", "cosine", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """Adam and its learning rate; all lengths in steps.

    steps: length of the whole run. schedule: 'halve' (every `halve_every` steps), 'cosine' (to zero at
    `steps`) or 'constant'. cycles: cosines one after the other, each over an equal share of `steps` (SGDR,
    Loshchilov and Hutter, 2017). warmup_steps: the rate first rises linearly over this many steps. clip:
    largest global norm of the gradients. ema: decay of the averaged parameters. 0 turns `warmup_steps`,
    `clip`, `weight_decay` and `ema` off.
    """

    steps: int
    halve_every: int
    learning_rate: float = 2e-4
    b1: float = 0.9
    b2: float = 0.999
    schedule: str = "halve"
    cycles: int = 1
    warmup_steps: int = 0
    clip: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0

    def __post_init__(self):
        schema.check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        if self.learning_rate <= 0:
            raise ValueError(f"optimizer.learning_rate: expected more than 0, found {self.learning_rate}")
        for name in ("b1", "b2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name}: expected 0 ≤ {name} < 1, found {getattr(self, name)}")
        for name in ("warmup_steps", "clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name}: expected 0 (off) or more, found {getattr(self, name)}")
        for name in ("steps", "halve_every", "cycles"):
            schema.check_least(f"optimizer.{name}", getattr(self, name), 1)


def learning_rate(spec: OptimizerSpec, step: jax.Array) -> jax.Array:
    """The rate of the update that `step` (counted from 0) makes, float32."""
    step = jnp.asarray(step, jnp.float32)
    cycle = -(-spec.steps // spec.cycles)
    schedules = {
        "halve": optax.exponential_decay(spec.learning_rate, spec.halve_every, 0.5, staircase=True),
        "cosine": optax.join_schedules(
            [optax.cosine_decay_schedule(spec.learning_rate, cycle)] * spec.cycles,
            [cycle * i for i in range(1, spec.cycles)],
        ),
        "constant": optax.constant_schedule(spec.learning_rate),
    }
    rate = jnp.asarray(schedules[spec.schedule](step), jnp.float32)
    if spec.warmup_steps:
        # A factor and not a joined schedule: the decay counts from step 0, not from the warmup's end.
        rate = rate * jnp.minimum((step + 1) / spec.warmup_steps, 1)
    return rate


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
