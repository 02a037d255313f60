"""The architecture of an ADM U-Net, as data; the network itself is in `unet.py`."""

import dataclasses

from difflid_jax.weights import schema

PARTS = ("encoder", "all")
GROUPS = 32  # of every group normalization
NOISE_SCHEDULES = ("linear", "cosine")


@dataclasses.dataclass(frozen=True)
class UNetSpec(schema.JsonSpec):
    """Architecture of an ADM U-Net, with the names of guided-diffusion's UNetModel.

    `attention_resolutions` are down-sampling rates (2 means half the image size). A
    `num_head_channels` other than −1 overrides `num_heads`. `noise_schedule` and `diffusion_steps` are those
    that the model was trained with.
    """

    SECTION = "unet"

    image_size: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    channel_mult: tuple[float, ...]
    in_channels: int = 3
    out_channels: int = 6
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    dropout: float = 0.0
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"

    def __post_init__(self):
        # At least twice the largest released model's values: a file cannot ask for an unbounded network.
        self.check_fields(
            image_size=(1, 4096),
            model_channels=(1, 4096),
            num_res_blocks=(1, 16),
            attention_resolutions=(1, 4096),
            channel_mult=(0, 64),
            in_channels=(1, 64),
            out_channels=(1, 64),
            num_classes=(1, 2**20),
            num_heads=(1, 1024),
            num_head_channels=(-1, 4096),
            dropout=(0, 1),
            diffusion_steps=(1, 100_000),
        )
        widths = [int(mult * self.model_channels) for mult in self.channel_mult]
        if not widths or any(not width or width % GROUPS for width in widths):
            raise ValueError(
                f"unet.channel_mult: expected widths that are multiples of {GROUPS}, found "
                f"{schema.brief(self.channel_mult)} × {self.model_channels} channels"
            )
        if not self.num_head_channels:
            raise ValueError("unet.num_head_channels: expected -1 (use num_heads) or at least 1, found 0")
        schema.check_choice("unet.noise_schedule", self.noise_schedule, NOISE_SCHEDULES)

    @property
    def stride(self) -> int:
        """Pixels of the image per position of the h-space, along each side."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def num_input_blocks(self) -> int:
        """Length of `UNet.input_blocks`."""
        return len(self.channel_mult) * (self.num_res_blocks + 1)

    @property
    def bottleneck_channels(self) -> int:
        """Channels of the h-space."""
        return int(self.channel_mult[-1] * self.model_channels)

    def heads(self, channels: int) -> int:
        """Heads of a block of `channels`. Raises ValueError if `num_head_channels` does not divide it."""
        if self.num_head_channels == -1:
            return self.num_heads
        if channels % self.num_head_channels:
            raise ValueError(f"num_head_channels {self.num_head_channels} does not divide {channels}")
        return channels // self.num_head_channels
