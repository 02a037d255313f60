"""Architectures of the nine diffusion models that OpenAI released, by the stem of the file's name.

Reference: the flags in openai/guided-diffusion's README; `attention_resolutions 32,16,8` there are image
sizes and become down-sampling rates here (image_size // resolution).
"""

from difflid_jax.diffusion.spec import UNetSpec


def _released(image_size: int, channel_mult: tuple[float, ...], **fields) -> UNetSpec:
    return UNetSpec(
        **{
            "image_size": image_size,
            "model_channels": 256,
            "num_res_blocks": 2,
            "attention_resolutions": tuple(image_size // size for size in (32, 16, 8)),
            "channel_mult": channel_mult,
            "num_head_channels": 64,
            **fields,
        }
    )


_MULT_256 = (1, 1, 2, 2, 4, 4)

PRESETS: dict[str, UNetSpec] = {
    "256x256_diffusion_uncond": _released(256, _MULT_256),
    "256x256_diffusion": _released(256, _MULT_256, num_classes=1000),
    "512x512_diffusion": _released(512, (0.5, 1, 1, 2, 2, 4, 4), num_classes=1000),
    "128x128_diffusion": _released(128, (1, 1, 2, 3, 4), num_classes=1000, num_heads=4, num_head_channels=-1),
    "64x64_diffusion": _released(
        64,
        (1, 2, 3, 4),
        num_classes=1000,
        model_channels=192,
        num_res_blocks=3,
        noise_schedule="cosine",
        dropout=0.1,
        use_new_attention_order=True,
    ),
    "lsun_bedroom": _released(256, _MULT_256, dropout=0.1),
    "lsun_cat": _released(256, _MULT_256, dropout=0.1),
    "lsun_horse": _released(256, _MULT_256, dropout=0.1),
    "lsun_horse_nodropout": _released(256, _MULT_256),
}
