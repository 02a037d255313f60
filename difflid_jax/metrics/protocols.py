"""Evaluation protocols: what exactly is done to a restored picture before a number is called PSNR.

Papers of the field differ in rounding, colour, the SSIM window and more, and seldom say so; the same
pictures score a dB apart. A protocol is data, every score comes from `score`, and whoever prints a
number prints the protocol's name beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from difflid_jax.metrics.fidelity import checked_pair, psnr, ssim


@dataclass(frozen=True)
class Protocol:
    """How a pair is scored. Every protocol first clamps the restored picture to [0, 1].

    gt_mean: scale the restored picture so that its mean BT.601 luma is the ground truth's, clamp again.
        It reads the ground truth: such numbers compare with nothing but their like.
    round_to_8_bit: round the restored picture to multiples of 1/255, as if saved as a PNG and read back.
    luma: 'rgb' scores the three channels; 'bt601' the studio-range Y of MATLAB's rgb2ycbcr,
        (65.481 R + 128.553 G + 24.966 B + 16) / 255, which people mean by "PSNR on Y". Its range is
        16…235: the same error scores 1.3 dB more than on a full-range luma.
    ssim_window, ssim_downsample: see `fidelity.ssim`.
    """

    name: str
    summary: str
    gt_mean: bool = False
    round_to_8_bit: bool = False
    luma: Literal["rgb", "bt601"] = "rgb"
    ssim_window: Literal["gaussian", "uniform"] = "gaussian"
    ssim_downsample: bool = False


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "RGB in [0,1], clamped, not rounded, whole picture; Gaussian SSIM 11×11"),
        Protocol("uint8", "as paper, rounded to 8 bit first", round_to_8_bit=True),
        Protocol("y", "as paper, on the BT.601 luma Y (16…235)", luma="bt601"),
        Protocol(
            "ssim_downsampled",
            "as paper, SSIM after averaging down to about 256 px (DehazeFormer, gUNet, ConvIR)",
            ssim_downsample=True,
        ),
        Protocol(
            "ssim_skimage7", "as paper, SSIM with a uniform 7×7 window (Dehamer)", ssim_window="uniform"
        ),
        Protocol(
            "gt_mean", "as paper, brightness scaled to the ground truth's first (low light)", gt_mean=True
        ),
    )
}


def find_protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name. Raises ValueError that lists the names there are."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise ValueError(f"evaluation protocol: expected one of {', '.join(PROTOCOLS)}, found {name!r}")
    return PROTOCOLS[name]


def score(
    restored: ArrayLike,
    clean: ArrayLike,
    protocol: str | Protocol = "paper",
    *,
    lpips: Callable[[Array, Array], Array] | None = None,
) -> dict[str, Array]:
    """Scores of each pair: (B,H,W,3) floats, clean in [0,1] → {'psnr': (B,), 'ssim': (B,)} float32.

    With `lpips` (a `metrics.lpips.Lpips`) also 'lpips': of the same prepared picture, but always in RGB.
    Raises ValueError for an unknown protocol or pictures that `psnr`, `ssim` or `lpips` refuse.
    """
    protocol = find_protocol(protocol)
    restored, clean = checked_pair(restored, clean)
    if clean.shape[-1] != 3:
        raise ValueError(f"a protocol scores RGB pictures (B, H, W, 3), found {clean.shape}")
    prepared = prepare(restored, clean, protocol=protocol)
    scores = _fidelity(prepared, clean, protocol=protocol)
    if lpips is not None:
        scores["lpips"] = lpips(prepared, clean)
    return scores


@partial(jax.jit, static_argnames="protocol")
def prepare(restored: Array, clean: Array, *, protocol: Protocol) -> Array:
    """The restored pictures as the protocol scores them: (B,H,W,3) float32 RGB in [0,1]."""
    restored = jnp.clip(restored, 0.0, 1.0)
    if protocol.gt_mean:
        # A black picture has no gain that would help: it stays black instead of dividing by zero.
        gain = _mean_luma(clean) / jnp.maximum(_mean_luma(restored), 1e-6)
        restored = jnp.clip(restored * gain[:, None, None, None], 0.0, 1.0)
    if protocol.round_to_8_bit:
        restored = jnp.round(restored * 255.0) / 255.0
    return restored


@partial(jax.jit, static_argnames="protocol")
def _fidelity(prepared: Array, clean: Array, *, protocol: Protocol) -> dict[str, Array]:
    if protocol.luma == "bt601":
        prepared, clean = _studio_luma(prepared), _studio_luma(clean)
    return {
        "psnr": psnr(prepared, clean),
        "ssim": ssim(prepared, clean, window=protocol.ssim_window, downsample=protocol.ssim_downsample),
    }


# Weighted by elementwise products: a matrix product may round to TF32 on a GPU.


def _mean_luma(image: Array) -> Array:
    return jnp.sum(jnp.mean(image, axis=(1, 2)) * jnp.array([0.299, 0.587, 0.114]), axis=-1)


def _studio_luma(image: Array) -> Array:
    weighted = jnp.sum(image * jnp.array([65.481, 128.553, 24.966]), axis=-1, keepdims=True)
    return (weighted + 16.0) / 255.0
