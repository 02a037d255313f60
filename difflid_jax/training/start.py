"""The parameters that a training starts from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from difflid_jax.weights import store


def first_parameters(
    make: Callable[[], nnx.Module], spec: Any, kind: str, init: str
) -> tuple[nnx.GraphDef, nnx.State, str]:
    """Graph and parameters of the module that `make` builds, random or from `init`, and their hash.

    spec: the module's architecture. init: weights, or '' for random ones, whose hash is ''. Raises ValueError
    if `init` holds weights of another `kind` or architecture.
    """
    abstract = nnx.eval_shape(make)
    graph = nnx.graphdef(abstract)
    if not init:
        # In one compiled call: hundreds of small ones take seconds.
        return graph, jax.jit(lambda: nnx.state(make()))(), ""
    weights = store.read(init, kind)
    if weights.architecture != spec.to_dict():
        raise ValueError(
            f"config.init: {weights.path} has the architecture {weights.architecture}, but the config asks "
            f"for {spec.to_dict()}"
        )
    store.fill(abstract, weights.tensors, where=str(weights.path), dtype=jnp.float32)
    return graph, nnx.state(abstract), weights.sha256
