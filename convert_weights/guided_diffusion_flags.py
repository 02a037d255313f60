"""The flags of OpenAI's guided-diffusion and the architecture they describe.

Reference: guided_diffusion/script_util.py, model_and_diffusion_defaults and create_model.
"""

from typing import Any

from difflid_jax.diffusion.spec import UNetSpec
from difflid_jax.weights.schema import brief, listed

# Flags of its training script, with their defaults (model_and_diffusion_defaults).
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
# Flags without effect on the network.
WITHOUT_EFFECT = ("use_checkpoint", "use_fp16", "use_kl", "timestep_respacing", "rescale_learned_sigmas")
# Flags that are fields of UNetSpec by the same name.
SAME_NAME = (
    "num_res_blocks",
    "num_heads",
    "num_head_channels",
    "use_scale_shift_norm",
    "resblock_updown",
    "use_new_attention_order",
    "dropout",
    "diffusion_steps",
    "noise_schedule",
)
# The widths of an empty --channel_mult (create_model), by image size.
DEFAULT_MULTS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}


def spec_from_flags(given: Any, *, classes: int | None, where: str) -> UNetSpec:
    """The architecture that guided-diffusion's flags describe; `classes`: the rows of the file's label table.

    Raises ValueError, naming the file `where` and the flag, for unknown flags, bad values, and options that
    no released model uses (other heads in the decoder, prediction of x_0).
    """
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected a JSON object of guided-diffusion's flags")
    if unknown := sorted(set(given) - set(FLAGS) - set(WITHOUT_EFFECT)):
        raise ValueError(
            f"{where}: not flags of guided-diffusion: {listed(unknown)}; it knows {', '.join(FLAGS)}"
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
    size = values["image_size"]
    mults = values["channel_mult"] or DEFAULT_MULTS.get(size)
    resolutions = values["attention_resolutions"]
    if mults is None:
        raise ValueError(f"{where}: channel_mult has no default for image_size {size}; give it")
    if any(not isinstance(n, int) or not 0 < n <= size for n in resolutions):
        raise ValueError(f"{where}: attention_resolutions: expected image sizes from 1 to {size}")
    try:
        return UNetSpec(
            image_size=size,
            model_channels=values["num_channels"],
            attention_resolutions=tuple(size // resolution for resolution in resolutions),
            channel_mult=mults,
            out_channels=6 if values["learn_sigma"] else 3,
            num_classes=classes if values["class_cond"] else None,
            **{key: values[key] for key in SAME_NAME},
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _as_flag(key: str, value: Any, where: str) -> Any:
    """A flag's value, given as JSON or as on a command line, in the type of its default."""
    try:
        if key in ("channel_mult", "attention_resolutions"):
            parts = value.split(",") if isinstance(value, str) else value
            numbers = [float(part) for part in parts if part != ""]
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
        expected = "numbers separated by commas" if isinstance(FLAGS[key], str) else type(FLAGS[key]).__name__
        raise ValueError(f"{where}: {key}: expected {expected}, found {brief(value)}") from error
