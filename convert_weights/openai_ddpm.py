"""Converts OpenAI's diffusion models (openai/guided-diffusion) and others trained with its code.

    python -m convert_weights.openai_ddpm 256x256_diffusion_uncond.pt --output=weights/imagenet256
    python -m convert_weights.openai_ddpm --download=256x256_diffusion_uncond --output=weights/imagenet256

--part=encoder (the default) keeps the time embedding, encoder and middle block, all that DiffLI²D needs;
--part=all keeps the decoder too, for sampling and for Layer-D of Table 3. --dtype=bfloat16 halves the file.

Names and shapes of the nine released models are checked against their known architectures. The number of
heads, the attention order and the noise schedule cannot be inferred from shapes, so any other model needs
--architecture: a JSON file of guided-diffusion's own flags ({"num_channels": 128, "attention_resolutions":
"16,8", …}), whose defaults replace missing ones.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags

from convert_weights import program
from convert_weights.guided_diffusion_flags import spec_from_flags
from convert_weights.program import layer, norm
from difflid_jax.cli import UsageError, definer, expand_home, run
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.spec import PARTS, UNetSpec
from difflid_jax.weights import store
from difflid_jax.weights.download import fetch
from difflid_jax.weights.rules import CONV, LINEAR, POINTWISE, Rule, map_tensors
from difflid_jax.weights.schema import check_choice, listed
from difflid_jax.weights.torch_file import read_torch

ADDRESS = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
# Size in bytes and SHA-256 of the released files, where known.
RELEASED = {
    "256x256_diffusion_uncond": (
        2_211_383_297,
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    )
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
DECODER = ("output_blocks.", "out_norm.", "out_conv.")

RULES: tuple[Rule, ...] = (
    *layer("time_embed.0", "time_embed.0", LINEAR),
    *layer("time_embed.2", "time_embed.1", LINEAR),
    Rule("label_emb.weight", "label_emb.embedding"),
    *layer("input_blocks.0.0", "input_blocks.0.0", CONV),
    # Residual blocks
    *norm("{*}.in_layers.0", "{*}.in_norm"),
    *layer("{*}.in_layers.2", "{*}.in_conv", CONV),
    *layer("{*}.emb_layers.1", "{*}.emb_proj", LINEAR),
    *norm("{*}.out_layers.0", "{*}.out_norm"),
    *layer("{*}.out_layers.3", "{*}.out_conv", CONV),
    *layer("{*}.skip_connection", "{*}.skip_conv", CONV),
    # Attention blocks
    *norm("{*}.norm", "{*}.norm"),
    *layer("{*}.qkv", "{*}.qkv", POINTWISE),
    *layer("{*}.proj_out", "{*}.proj", POINTWISE),
    # Plain down- and up-sampling (resblock_updown=False)
    *layer("input_blocks.{}.0.op", "input_blocks.{}.0.conv", CONV),
    *layer("output_blocks.{}.{}.conv", "output_blocks.{}.{}.conv", CONV),
    *norm("out.0", "out_norm"),
    *layer("out.2", "out_conv", CONV),
)


def convert(
    state: Any,
    *,
    where: str,
    name: str = "",
    preset: str | None = None,
    architecture: Any = None,
    part: str = "encoder",
) -> tuple[UNetSpec, dict[str, np.ndarray]]:
    """The architecture of guided-diffusion's state dict, and our tensors of `part` as views of the source.

    The whole state dict is checked against an architecture: that of `preset`, of the flags in `architecture`,
    or of the only released model that fits; `name` (the file's stem) decides between models that differ only
    in their training. Raises one ValueError, naming the file `where`, on everything that does not fit.
    """
    tensors = program.state_dict(state, where=where, of="a diffusion model of guided-diffusion")
    if odd := [f"{name} ({value.dtype})" for name, value in tensors.items() if not _is_float(value)]:
        raise ValueError(f"{where}: expected floating-point tensors, found {listed(odd)}")
    if preset is not None:
        check_choice("--preset", preset, PRESETS)
        spec = PRESETS[preset]
    elif architecture is not None:
        labels = tensors.get("label_emb.weight")
        spec = spec_from_flags(architecture, classes=None if labels is None else len(labels), where=where)
    else:
        fitting = presets_that_fit(tensors)
        if len({_untrained(PRESETS[fit]) for fit in fitting}) != 1:
            found = f"{len(fitting)} of the released models" if fitting else "none of the released models"
            raise ValueError(
                f"{where}: fits {found} ({_signature_text(tensors)}); give its flags with --architecture=FILE"
                f"{'' if fitting else _nearest(tensors)}"
            )
        spec = PRESETS[name if name in fitting else fitting[0]]
    try:
        shapes = _shapes(_untrained(spec))
    except ValueError as error:
        raise ValueError(f"{where}: no network can be built from these flags: {error}") from error
    try:
        mapped = map_tensors(tensors, RULES, (), shapes, where=where)
    except ValueError as error:
        fitting = [] if preset is None and architecture is None else presets_that_fit(tensors)
        advice = f"; it fits --preset={' or '.join(fitting)}" if fitting else ""
        raise ValueError(f"{error}{advice}") from error
    if part == "encoder":
        mapped = {name: tensor for name, tensor in mapped.items() if not name.startswith(DECODER)}
    return spec, mapped


def presets_that_fit(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The released models whose names and shapes are exactly those of `tensors`."""
    return [name for name, differences in _against_presets(tensors).items() if not differences]


def _nearest(tensors: Mapping[str, np.ndarray]) -> str:
    """How `tensors` differ from the first released model of the same size, if there is one."""
    differences = list(_against_presets(tensors).values())
    return f"; the nearest is {differences[0]}" if differences else ""


def _against_presets(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """How `tensors` differ from each released model of equal `_signature`: "" if not at all."""
    found = {}
    for name, spec in PRESETS.items():
        if _signature(tensors) != (spec.model_channels, spec.num_input_blocks, spec.num_classes):
            continue
        try:
            map_tensors(tensors, RULES, (), _shapes(_untrained(spec)), where=name)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


def _is_float(tensor: np.ndarray) -> bool:
    return tensor.dtype in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def _signature(tensors: Mapping[str, np.ndarray]) -> tuple[int | None, int, int | None]:
    """(channels, input blocks, classes), used to preselect presets."""
    embed, labels = tensors.get("time_embed.0.weight"), tensors.get("label_emb.weight")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("input_blocks.")}
    channels = embed.shape[1] if embed is not None and embed.ndim == 2 else None
    return channels, len(blocks), None if labels is None or not labels.ndim else len(labels)


def _signature_text(tensors: Mapping[str, np.ndarray]) -> str:
    channels, blocks, classes = _signature(tensors)
    return f"{len(tensors)} tensors, {channels} channels, {blocks} input blocks, {classes or 'no'} classes"


def _untrained(spec: UNetSpec) -> UNetSpec:
    """The architecture without the fields that matter only in training."""
    return dataclasses.replace(spec, dropout=0.0)


@functools.cache
def _shapes(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    # Imported here so that --help does not wait for JAX to load.
    from flax import nnx

    from difflid_jax.diffusion.unet import UNet

    return store.shapes_of(nnx.eval_shape(lambda: UNet(spec, part="all", rngs=nnx.Rngs(0))))


def define_flags(values: flags.FlagValues = flags.FLAGS) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    define = definer(values)
    program.define_flags(values)
    for name, default, choices, text in (
        ("download", None, list(PRESETS), "Released model to download into the output folder first."),
        ("preset", None, list(PRESETS), "Released model that has the architecture of the checkpoint."),
        ("part", "encoder", list(PARTS), "Part of the U-Net to keep."),
        ("dtype", "float32", list(DTYPES), "Type of the stored numbers."),
    ):
        define("enum", name, default, choices, text)
    define("path", "architecture", None, "JSON file of guided-diffusion's flags, for any other model.")
    define("string", "address", ADDRESS, "URL of the released files (a mirror's).")
    return values


def main(argv: Sequence[str], options: flags.FlagValues = flags.FLAGS) -> None:
    if (len(argv) == 2) == bool(options.download) or len(argv) > 2 or not options.output:
        raise UsageError("give one checkpoint, or --download NAME, and --output FOLDER")
    if options.preset and options.architecture:
        raise UsageError("give --preset or --architecture, not both")
    program.require_output(options)
    architecture = None
    if options.architecture:
        try:
            architecture = json.loads(Path(options.architecture).read_text())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{options.architecture}: expected a JSON file of flags: {error}") from error
    source = Path(expand_home(argv[-1]))
    if options.download:
        source = Path(options.output) / f"{options.download}.pt"
        size, sha256 = RELEASED.get(options.download, (None, None))
        fetch(options.address + source.name, source, size=size, sha256=sha256)
    preset = options.preset or (options.download if architecture is None else None)
    spec, tensors = convert(
        read_torch(source),
        where=str(source),
        name=source.stem,
        preset=preset,
        architecture=architecture,
        part=options.part,
    )
    stored = {"dtype": DTYPES[options.dtype], "part": options.part}
    program.write(options, "unet", tensors, spec.to_dict(), [source], **stored)
    if options.download:
        print(f"{source} is no longer needed and may be removed")


if __name__ == "__main__":
    run(main, define_flags)
