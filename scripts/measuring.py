"""What the benchmarks of the h-space and of the training step share: parts measured in turns, and models."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from difflid_jax.cli import UsageError
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.training.throughput import flops
from difflid_jax.weights import store

_FIELDS_OF_UNET = (
    "image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions",
    "channel_mult", "num_classes", "num_heads", "num_head_channels", "use_scale_shift_norm",
    "resblock_updown", "use_new_attention_order",
)  # fmt: skip


@dataclass
class Part:
    """What is measured: `call` runs it once and waits for the result. `memory`: bytes that it holds."""

    name: str
    call: Callable[[], Any]
    flops: float = 0.0
    memory: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def compiled_part(name: str, function: Callable[..., Any], *arguments: Any) -> Part:
    """`function` compiled for `arguments`, with XLA's count of its operations before optimization."""
    lowered = jax.jit(function).lower(*arguments)
    compiled = lowered.compile()
    return Part(
        name, lambda: jax.block_until_ready(compiled(*arguments)), flops(lowered), memory_of(compiled)
    )


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Arguments, results and temporaries; what is written into donated arguments counts once."""
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    analysis = compiled.memory_analysis()
    return sum(getattr(analysis, size, 0) for size in sizes) - getattr(analysis, "alias_size_in_bytes", 0)


def measure_in_turns(parts: Sequence[Part], turns: int, rest: float = 0.0) -> None:
    """Time every part `turns` times in turns, so that other work on the machine affects all alike.

    rest: seconds before each call (PyTorch's threads keep spinning for a while after their work).
    """
    for each in parts:
        each.call()
    for _ in range(turns):
        for each in parts:
            time.sleep(rest)
            start = time.perf_counter()
            each.call()
            each.seconds.append(time.perf_counter() - start)


def random_unet(spec: UNetSpec, part: str, dtype: Any) -> UNet:
    """A U-Net of random weights: a million numbers repeated, since half a billion would take minutes."""
    unet = nnx.eval_shape(lambda: UNet(spec, part=part, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)))
    drawn = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * 0.02
    tensors = {name: np.resize(drawn, shape) for name, shape in store.shapes_of(unet).items()}
    store.fill(unet, tensors, where="random weights")
    return unet


def pytorch_unet(flag: str, checkout: str, spec: UNetSpec) -> Any:
    """The `guided_diffusion.unet.UNetModel` of a checkout, random weights, on the kind of device JAX uses.

    The checkout stays on the import path. Raises: UsageError, naming `flag`, if it or PyTorch is missing.
    """
    sys.path.insert(0, str(Path(checkout).expanduser()))
    try:
        import torch
        from guided_diffusion.unet import UNetModel
    except ImportError as error:
        raise UsageError(f"{flag} {checkout}: PyTorch's side cannot run: {error}") from error
    with torch.device("meta"):
        unet = UNetModel(**{name: getattr(spec, name) for name in _FIELDS_OF_UNET})
    unet = unet.to_empty(device="cuda" if jax.default_backend() == "gpu" else "cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(0, 0.02)
    return unet
