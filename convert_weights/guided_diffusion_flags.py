"""The flags of OpenAI's guided-diffusion, and the architecture that they describe.

Reference: guided_diffusion/script_util.py, model_and_diffusion_defaults and create_model.
"""

from typing import Any

from difflid_jax.diffusion.schedule import NAMES
from difflid_jax.diffusion.unet import UNetSpec

# Flags of guided-diffusion's training script with its defaults (model_and_diffusion_defaults).
FLAGS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
# Flags that leave the network as it is.
WITHOUT_EFFECT = ("use_checkpoint", "use_fp16", "use_kl", "timestep_respacing", "rescale_learned_sigmas")
# More than any model has; it bounds what a wrong file of flags can ask for.
MOST = {"num_res_blocks": 64, "channel_mult": 16, "attention_resolutions": 16}
# The widths that an empty --channel_mult stands for (create_model).
DEFAULT_MULTS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def spec_from_flags(given: Any, *, classes: int | None, where: str) -> UNetSpec:
    """The architecture that guided-diffusion's flags describe; `classes` is what the file's labels count.

    Raises ValueError, naming `where` and the flag, for unknown flags, values of another type, and the options
    that no released model uses (heads that differ in the decoder, prediction of x_0).
    """
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected a JSON object of guided-diffusion's flags")
    unknown = sorted(set(given) - set(FLAGS) - set(WITHOUT_EFFECT))
    if unknown:
        raise ValueError(
            f"{where}: no flags of guided-diffusion: {', '.join(unknown)}; it knows {', '.join(FLAGS)}"
        )
    values = {key: _as_flag(key, given.get(key, default), where) for key, default in FLAGS.items()}
    if values["num_heads_upsample"] not in (-1, values["num_heads"]):
        raise ValueError(f"{where}: num_heads_upsample other than num_heads is not supported")
    if values["predict_xstart"]:
        raise ValueError(f"{where}: predict_xstart is not supported; the models here predict the noise")
    if values["rescale_timesteps"] and values["diffusion_steps"] != 1000:
        raise ValueError(f"{where}: rescale_timesteps is supported with diffusion_steps 1000 only")
    if values["class_cond"] and classes is None:
        raise ValueError(f"{where}: class_cond is true, but the checkpoint has no label_emb.weight")
    for key in ("image_size", "num_channels", "num_res_blocks", "num_heads", "diffusion_steps"):
        if not 1 <= values[key] <= MOST.get(key, 1 << 16):
            raise ValueError(f"{where}: {key}: expected 1 to {MOST.get(key, 1 << 16)}, found {values[key]}")
    if not 0 <= values["dropout"] < 1:
        raise ValueError(f"{where}: dropout: expected 0 to less than 1, found {values['dropout']}")
    if values["noise_schedule"] not in NAMES:
        expected = ", ".join(NAMES)
        raise ValueError(
            f"{where}: noise_schedule: expected one of {expected}, found {_brief(values['noise_schedule'])}"
        )
    size = values["image_size"]
    mults = values["channel_mult"] or DEFAULT_MULTS.get(size)
    resolutions = values["attention_resolutions"]
    if mults is None:
        raise ValueError(f"{where}: channel_mult has no default for image_size {size}; give it")
    if any(not 0 < resolution <= size for resolution in resolutions) or min(mults) <= 0:
        raise ValueError(
            f"{where}: attention_resolutions are image sizes from 1 to {size}, channel_mult positive numbers"
        )
    return UNetSpec(
        image_size=size,
        model_channels=values["num_channels"],
        num_res_blocks=values["num_res_blocks"],
        attention_resolutions=tuple(size // int(resolution) for resolution in resolutions),
        channel_mult=mults,
        out_channels=6 if values["learn_sigma"] else 3,
        num_classes=classes if values["class_cond"] else None,
        num_heads=values["num_heads"],
        num_head_channels=values["num_head_channels"],
        use_scale_shift_norm=values["use_scale_shift_norm"],
        resblock_updown=values["resblock_updown"],
        use_new_attention_order=values["use_new_attention_order"],
        dropout=values["dropout"],
        diffusion_steps=values["diffusion_steps"],
        noise_schedule=values["noise_schedule"],
    )


def _as_flag(key: str, value: Any, where: str) -> Any:
    """A flag's value, given as JSON or as on a command line, in the type of its default."""
    try:
        if key in ("channel_mult", "attention_resolutions"):
            parts = value.split(",") if isinstance(value, str) else value
            numbers = [float(part) for part in parts if part != ""]
            if not all(0 <= abs(n) < 1 << 16 for n in numbers) or len(numbers) > MOST[key]:
                raise ValueError
            return tuple(int(n) if n.is_integer() else n for n in numbers)
        kind = type(FLAGS[key])
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if kind is str:
            return str(value)
        if isinstance(value, bool) or kind(value) != float(value):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        expected = "numbers with commas between" if isinstance(FLAGS[key], str) else type(FLAGS[key]).__name__
        raise ValueError(f"{where}: {key}: expected {expected}, found {_brief(value)}") from error


def _brief(value: Any) -> str:
    return repr(value)[:80]
