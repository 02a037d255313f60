"""One compiled training step over pure state: loss, gradients, Adam, average, and the guard against NaN.

A step is made from a loss, that of the restorer or of another task (`loss.py`). A frozen network is an
argument of the step, not part of its state, and gets no gradient.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from difflid_jax.training import optimizer as optim
from difflid_jax.training.optimizer import OptimizerSpec

# loss(params, frozen, batch, key, step) → (scalar loss, named scalars for the log)
Loss = Callable[
    [Any, Any, Mapping[str, jax.Array], jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes. `ema` is None if no average is kept; `key` holds raw key data."""

    step: jax.Array  # steps done, int32
    params: Any
    optimizer: Any
    ema: Any
    key: jax.Array
    bad_steps: jax.Array  # skipped updates in a row, int32
    skipped: jax.Array  # skipped updates in all, int32

    @property
    def eval_params(self) -> Any:
        """The parameters to restore with: the averaged ones if they are kept."""
        return self.params if self.ema is None else self.ema


def initial_state(params: Any, spec: OptimizerSpec, seed: int) -> TrainState:
    """The state before the first step. Its buffers are its own: the step may donate them."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=optim.direction(spec).init(params),
        ema=jax.tree.map(jnp.copy, params) if spec.ema else None,
        key=jax.random.key_data(jax.random.key(seed)),
        bad_steps=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def make_step(loss: Loss, spec: OptimizerSpec) -> Callable:
    """The pure function (state, frozen, batch) → (state, metrics); compile it with the state donated.

    The random key of a step is a function of the run's key and the step's number, so a resumed run draws
    what the uninterrupted one would have drawn. If the loss or a gradient is not finite, parameters,
    optimizer and average stay as they are, and the step is counted in `bad_steps` and `skipped`.
    """
    transformation = optim.direction(spec)

    def step(state: TrainState, frozen: Any, batch: Mapping[str, jax.Array]):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, metrics), gradients = differentiate(state.params, frozen, batch, key, state.step)
        flat, unflatten = ravel_pytree(gradients)
        # As parts of one array, which the barrier keeps XLA from seeing through, the leaves of one shape are
        # updated by one kernel on a GPU. A CPU gains nothing.
        flat = jax.lax.optimization_barrier(flat)
        norm = jnp.linalg.norm(flat)
        gradients = jax.lax.platform_dependent(
            flat, gradients, cpu=lambda flat, leaves: leaves, default=lambda flat, leaves: unflatten(flat)
        )
        is_finite = jnp.isfinite(value) & jnp.isfinite(norm)

        rate = optim.learning_rate(spec, state.step)
        updates, moments = transformation.update(gradients, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optim.update_ema(spec, ema, params, state.step)

        def choose(new, old):
            return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, old)

        bad_steps = jnp.where(is_finite, 0, state.bad_steps + 1)
        after = TrainState(
            step=state.step + 1,
            params=choose(params, state.params),
            optimizer=choose(moments, state.optimizer),
            ema=choose(ema, state.ema),
            key=state.key,
            bad_steps=bad_steps,
            skipped=state.skipped + jnp.where(is_finite, 0, 1),
        )
        report = {"loss": value, **metrics, "gradient_norm": norm, "learning_rate": rate}
        return after, report | {"bad_steps": bad_steps, "skipped": after.skipped}

    return step
