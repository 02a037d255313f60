"""The prior: a frozen diffusion model, loaded from a weights folder or by its shipped name."""

import os
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.weights import store


class Prior(NamedTuple):
    """A frozen diffusion model, its noise schedule, and the SHA-256 of the file it came from."""

    unet: UNet
    schedule: Schedule
    sha256: str


def load_prior(
    name_or_folder: str | os.PathLike, *, part: str = "encoder", dtype: Any = jnp.float32
) -> Prior:
    """The prior `name_or_folder` (weights of kind "unet"), computing in `dtype`.

    part="encoder" takes time embedding, encoder and middle block, all that the h-space needs; "all" needs
    weights converted or trained with the decoder. Parameters have the types that their layers compute in
    (`in_compute_dtype`). Raises ValueError for weights of another kind or architecture, and for a missing
    decoder.
    """
    weights = store.read(name_or_folder, "unet")
    spec = weights.spec(UNetSpec)
    if spec.in_channels != 3:
        raise ValueError(f"{weights.path}: expected a model of RGB images, found {spec.in_channels} channels")
    # Before the network is built: a file cannot ask for more blocks than it holds.
    found = len({name.split(".")[1] for name in weights.tensors if name.startswith("input_blocks.")})
    if found != spec.num_input_blocks:
        raise ValueError(
            f"{weights.path}: architecture: unet.num_res_blocks and unet.channel_mult give "
            f"{spec.num_input_blocks} input blocks, found {found} in the file"
        )
    has_decoder = any(name.startswith("output_blocks.") for name in weights.tensors)
    if part == "all" and not has_decoder:
        raise ValueError(
            f"{weights.path}: holds the encoder only, but the decoder is needed; convert with --part all"
        )
    tensors = weights.tensors
    if part == "encoder" and has_decoder:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(("output_blocks.", "out_"))}
    unet = nnx.eval_shape(lambda: UNet(spec, part=part, dtype=dtype, rngs=nnx.Rngs(0)))
    store.fill(unet, tensors, where=str(weights.path), dtype=jnp.float32)
    in_compute_dtype(unet)
    return Prior(unet, Schedule.named(spec.noise_schedule, spec.diffusion_steps), weights.sha256)


def random_prior(spec: UNetSpec, seed: int, *, part: str = "encoder", dtype: Any = jnp.float32) -> Prior:
    """A prior of architecture `spec` with random weights: a control that knows nothing about photographs."""
    unet = UNet(spec, part=part, dtype=dtype, rngs=nnx.Rngs(seed))
    in_compute_dtype(unet)
    return Prior(unet, Schedule.named(spec.noise_schedule, spec.diffusion_steps), f"random:{seed}")


def in_compute_dtype(unet: UNet) -> None:
    """Cast the weights of a frozen `unet` in place to the types that its layers compute in.

    A layer would cast them at every call, to the same numbers: in bfloat16 this saves half of the memory and,
    on a GPU, a kernel per array. Normalization and time embedding compute in float32 and keep it.
    """
    for _, module in nnx.iter_modules(unet):
        if isinstance(module, nnx.Conv | nnx.Linear):
            for param in (module.kernel, module.bias):
                param.set_value(jnp.asarray(param.get_value(), module.dtype))
