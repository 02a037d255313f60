"""Evaluation protocols: what exactly is done to a restored image before a number is called PSNR.

Papers of the field differ in rounding, colour, the SSIM window and more, and seldom say so; the same images
score a dB apart. A protocol is data, `measure.py` applies it, and every printed number names its protocol.
"""

from dataclasses import dataclass
from typing import Literal

from difflid_jax.weights import schema


@dataclass(frozen=True)
class Protocol:
    """How a pair is scored. Every protocol first clamps the restored image to [0, 1].

    gt_mean: scale the restored image so that its mean BT.601 luma is the ground truth's, clamp again. It
        reads the ground truth: such numbers compare only with others of their kind.
    round_to_8_bit: round the restored image to multiples of 1/255, as if saved as a PNG and read back.
    luma: 'rgb' scores the three channels; 'bt601' the studio-range Y of MATLAB's rgb2ycbcr,
        (65.481 R + 128.553 G + 24.966 B + 16) / 255, which papers mean by "PSNR on Y". Its range is 16…235:
        the same error scores 1.3 dB more than on a full-range luma.
    ssim_window, ssim_downsample: see `fidelity.ssim`.
    crop: side in pixels of the random square that is cut from each pair, and mirrored with probability 1/2,
        before it is restored (0: the whole image).
    batch: images whose scores are averaged first, PSNR over their joint squared error; the mean is then over
        such batches, in the data set's order (0: over images).
    """

    name: str
    summary: str
    gt_mean: bool = False
    round_to_8_bit: bool = False
    luma: Literal["rgb", "bt601"] = "rgb"
    ssim_window: Literal["gaussian", "uniform"] = "gaussian"
    ssim_downsample: bool = False
    crop: int = 0
    batch: int = 0


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("paper", "RGB in [0,1], clamped, not rounded, whole image; Gaussian SSIM 11×11"),
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
        # validate() and test() of restore.py and the loader of data/dataset.py in aaaasan111/difflid.
        Protocol(
            "release_crops",
            "as the authors' code: one random 128 px crop of each image, mirrored or not, means over batches "
            "of 7 (seeded here)",
            crop=128,
            batch=7,
        ),
    )
}


def find_protocol(name: str | Protocol) -> Protocol:
    """The protocol called `name`. Raises ValueError, listing the known names, if there is none."""
    if isinstance(name, Protocol):
        return name
    schema.check_choice("evaluation protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
