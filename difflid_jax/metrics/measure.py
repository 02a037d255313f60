"""Scores of image pairs under a protocol: of one batch, and of a stream of images of any sizes."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from difflid_jax.compiled import bounded_jit
from difflid_jax.metrics.fidelity import checked_pair, psnr, ssim
from difflid_jax.metrics.protocols import Protocol, find_protocol
from difflid_jax.weights import schema

Example = tuple[str, np.ndarray, np.ndarray]
Distance = Callable[[Array, Array], Array]


def measure(
    restored: ArrayLike,
    clean: ArrayLike,
    protocol: str | Protocol = "paper",
    *,
    lpips: Distance | None = None,
) -> dict[str, Float[Array, " b"]]:
    """Scores of each pair: (B,H,W,3) floats, clean in [0,1] → {'psnr': (B,), 'ssim': (B,)} float32.

    With `lpips` (a `metrics.lpips.Lpips`) also 'lpips': of the same prepared image, but always in RGB.
    Raises ValueError for an unknown protocol or images that `psnr`, `ssim` or `lpips` refuse.
    """
    protocol = find_protocol(protocol)
    restored, clean = checked_pair(restored, clean)
    if clean.shape[-1] != 3:
        raise ValueError(f"a protocol scores RGB images (B, H, W, 3), found {clean.shape}")
    return _measure(prepare(restored, clean, protocol), clean, protocol, lpips)


def measure_all(
    examples: Iterable[Example],
    protocol: str | Protocol = "paper",
    *,
    batch_size: int = 1,
    lpips: Distance | None = None,
) -> dict[str, dict[str, float]]:
    """{name: {metric: score}} of a stream of (name, prepared, clean), images (H,W,3) float32 of any sizes.

    `prepared`: the restored image as `prepare` returns it. Images of one size are scored `batch_size` at a
    time; an incomplete batch is filled with copies of its last image, whose scores are dropped, so that every
    size is compiled once. Raises ValueError for images that `measure` refuses, or a name that occurs twice.
    """
    protocol = find_protocol(protocol)
    found: dict[str, dict[str, float]] = {}
    for names, *both in equal_size_batches(examples, batch_size):
        fill = batch_size - len(names)
        prepared, clean = (np.stack(images + [images[-1]] * fill) for images in both)
        try:
            scores = _measure(prepared, clean, protocol, lpips)
        except ValueError as error:
            raise ValueError(f"image {names[0]!r}: {error}") from error
        values = {metric: np.asarray(score, np.float64) for metric, score in scores.items()}
        for i, name in enumerate(names):
            if name in found:
                raise ValueError(f"image {name!r} was scored twice; names must be unique in a data set")
            found[name] = {metric: float(value[i]) for metric, value in values.items()}
    return found


def equal_size_batches(examples: Iterable[Example], batch_size: int) -> Iterator[tuple[list, list, list]]:
    """Group (name, restored, clean) by image size into ([names], [restored], [clean]) of ≤ batch_size.

    Order within a size is kept. At most `batch_size - 1` examples of each size wait in memory.
    """
    schema.check_least("batch_size", batch_size, 1)
    waiting: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        name, restored, clean = example
        if np.shape(restored) != np.shape(clean):
            raise ValueError(
                f"image {name!r}: the restored image is {np.shape(restored)}, but its ground truth is "
                f"{np.shape(clean)}; they must have the same size"
            )
        group = waiting.setdefault(np.shape(clean), [])
        group.append(example)
        if len(group) == batch_size:
            yield tuple(map(list, zip(*group, strict=True)))
            group.clear()
    for group in waiting.values():
        if group:
            yield tuple(map(list, zip(*group, strict=True)))


@partial(bounded_jit, static_argnums=(2,))
def prepare(
    restored: Float[Array, "b h w 3"], clean: Float[Array, "b h w 3"], protocol: Protocol
) -> Float[Array, "b h w 3"]:
    """The restored images as the protocol scores them: float32 RGB in [0,1]."""
    restored = jnp.clip(restored, 0.0, 1.0)
    if protocol.gt_mean:
        # No gain can brighten a black image: it stays black instead of dividing by zero.
        gain = _mean_luma(clean) / jnp.maximum(_mean_luma(restored), 1e-6)
        restored = jnp.clip(restored * gain[:, None, None, None], 0.0, 1.0)
    if protocol.round_to_8_bit:
        restored = jnp.round(restored * 255.0) / 255.0
    return restored


def _measure(prepared: Any, clean: Any, protocol: Protocol, lpips: Distance | None) -> dict[str, Array]:
    scores = _fidelity(prepared, clean, protocol)
    if lpips is not None:
        scores["lpips"] = lpips(prepared, clean)
    return scores


@partial(bounded_jit, static_argnums=(2,))
def _fidelity(prepared: Array, clean: Array, protocol: Protocol) -> dict[str, Array]:
    if protocol.luma == "bt601":
        prepared, clean = _studio_luma(prepared), _studio_luma(clean)
    return {
        "psnr": psnr(prepared, clean),
        "ssim": ssim(prepared, clean, window=protocol.ssim_window, downsample=protocol.ssim_downsample),
    }


# Weighted by elementwise products: a matrix product may round to TF32 on a GPU.


def _mean_luma(image: Array) -> Array:
    return jnp.sum(jnp.mean(image, axis=(1, 2)) * jnp.array([0.299, 0.587, 0.114], jnp.float32), axis=-1)


def _studio_luma(image: Array) -> Array:
    weights = jnp.array([65.481, 128.553, 24.966], jnp.float32)
    return (jnp.sum(image * weights, axis=-1, keepdims=True) + 16.0) / 255.0
