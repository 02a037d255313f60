"""Weights of OpenAI's diffusion models (openai/guided-diffusion), and of others trained with its code.

    python -m convert_weights.openai_ddpm 256x256_diffusion_uncond.pt --output weights/imagenet256
    python -m convert_weights.openai_ddpm --download 256x256_diffusion_uncond --output weights/imagenet256

--part encoder (the default) keeps time embedding, encoder and middle block, all that DiffLI²D reads; --part
all keeps the decoder too, which sampling and Table 3's Layer-D need. --dtype bfloat16 halves the file.

The architecture of the nine released models is known: names and shapes are held against it. Heads,
attention order and noise schedule leave no trace in shapes; for any other model --architecture takes a JSON
file of guided-diffusion's own flags ({"num_channels": 128, "attention_resolutions": "16,8", …}); a flag that
it leaves out has guided-diffusion's default.
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
from flax import nnx

from convert_weights.guided_diffusion_flags import spec_from_flags
from difflid_jax.cli import UsageError, refuse_existing, run
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.unet import PARTS, UNet, UNetSpec
from difflid_jax.weights import store
from difflid_jax.weights.download import fetch, sha256_of
from difflid_jax.weights.rules import CONV, LINEAR, POINTWISE, Rule, map_tensors
from difflid_jax.weights.torch_file import read_torch

ADDRESS = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
# Size and SHA-256 of the released files, where known.
RELEASED = {
    "256x256_diffusion_uncond": (
        2_211_383_297,
        "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    )
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
DECODER = ("output_blocks.", "out_norm.", "out_conv.")


def _layer(theirs: str, ours: str, layout) -> tuple[Rule, Rule]:
    return Rule(f"{theirs}.weight", f"{ours}.kernel", layout), Rule(f"{theirs}.bias", f"{ours}.bias")


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias")


RULES: tuple[Rule, ...] = (
    *_layer("time_embed.0", "time_embed.0", LINEAR),
    *_layer("time_embed.2", "time_embed.1", LINEAR),
    Rule("label_emb.weight", "label_emb.embedding"),
    *_layer("input_blocks.0.0", "input_blocks.0.0", CONV),
    # Residual blocks
    *_norm("{*}.in_layers.0", "{*}.in_norm"),
    *_layer("{*}.in_layers.2", "{*}.in_conv", CONV),
    *_layer("{*}.emb_layers.1", "{*}.emb_proj", LINEAR),
    *_norm("{*}.out_layers.0", "{*}.out_norm"),
    *_layer("{*}.out_layers.3", "{*}.out_conv", CONV),
    *_layer("{*}.skip_connection", "{*}.skip_conv", CONV),
    # Attention blocks
    *_norm("{*}.norm", "{*}.norm"),
    *_layer("{*}.qkv", "{*}.qkv", POINTWISE),
    *_layer("{*}.proj_out", "{*}.proj", POINTWISE),
    # Plain down- and up-sampling (resblock_updown=False)
    *_layer("input_blocks.{}.0.op", "input_blocks.{}.0.conv", CONV),
    *_layer("output_blocks.{}.{}.conv", "output_blocks.{}.{}.conv", CONV),
    *_norm("out.0", "out_norm"),
    *_layer("out.2", "out_conv", CONV),
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
    """A state dict of guided-diffusion → (architecture, our tensors of `part`, as views of the source).

    The whole state dict is held against the architecture: that of `preset`, of the flags in `architecture`,
    or else of the one released model that it fits; `name` (the file's stem) decides between models that
    differ in nothing but training. Raises one ValueError, naming `where`, that lists what does not fit.
    """
    tensors = _tensors(state, where)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset {preset}: expected one of {', '.join(PRESETS)}")
    if preset is not None:
        spec = PRESETS[preset]
    elif architecture is not None:
        labels = tensors.get("label_emb.weight")
        spec = spec_from_flags(architecture, classes=None if labels is None else len(labels), where=where)
    else:
        fitting = presets_that_fit(tensors)
        if len({_as_run(PRESETS[fit]) for fit in fitting}) != 1:
            found = f"{len(fitting)} of the released models" if fitting else "none of the released models"
            raise ValueError(
                f"{where}: fits {found} ({_signature_text(tensors)}); give its flags with --architecture FILE"
                f"{'' if fitting else _nearest(tensors)}"
            )
        spec = PRESETS[name if name in fitting else fitting[0]]
    try:
        shapes = _shapes(spec)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: these flags describe no network that can be built: {error}") from error
    try:
        mapped = map_tensors(tensors, RULES, (), shapes, where=where)
    except ValueError as error:
        fitting = [] if preset is None and architecture is None else presets_that_fit(tensors)
        advice = f"; it fits --preset {' or '.join(fitting)}" if fitting else ""
        raise ValueError(f"{error}{advice}") from error
    if part == "encoder":
        mapped = {name: tensor for name, tensor in mapped.items() if not name.startswith(DECODER)}
    broken = [name for name, tensor in mapped.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{where}: infinite or undefined numbers in {', '.join(broken[:5])}; a broken model")
    return spec, mapped


def presets_that_fit(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The released models whose names and shapes are exactly those of `tensors`."""
    return [name for name, differences in _held_against_presets(tensors).items() if not differences]


def _nearest(tensors: Mapping[str, np.ndarray]) -> str:
    """What keeps `tensors` from being a released model of the same size, where there is one; else ""."""
    differences = list(_held_against_presets(tensors).values())
    return f"; the nearest is {differences[0]}" if differences else ""


def _held_against_presets(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What does not fit, "" if nothing, for each released model of as many channels, blocks and classes."""
    found = {}
    for name, spec in PRESETS.items():
        if _signature(tensors) != (spec.model_channels, spec.num_input_blocks, spec.num_classes):
            continue
        try:
            map_tensors(tensors, RULES, (), _shapes(spec), where=name)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


def _tensors(state: Any, where: str) -> dict[str, np.ndarray]:
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{where}: expected a state dict, names and tensors, found a {type(state).__name__}")
    others = [str(name) for name, value in state.items() if not isinstance(value, np.ndarray)]
    if others:
        raise ValueError(
            f"{where}: expected a state dict, names and tensors, as guided-diffusion saves it; found what is "
            f"no tensor under {', '.join(others[:10])}: save the model's own state dict"
        )
    floating = {name for name, value in state.items() if value.dtype in _FLOATING}
    if len(floating) != len(state):
        odd = [f"{name} ({state[name].dtype})" for name in state if name not in floating]
        raise ValueError(f"{where}: expected floating tensors, found {', '.join(odd[:10])}")
    return {str(name): value for name, value in state.items()}


_FLOATING = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def _signature(tensors: Mapping[str, np.ndarray]) -> tuple[int | None, int, int | None]:
    """(channels, input blocks, classes): what tells at a glance which presets are worth a closer look."""
    embed, labels = tensors.get("time_embed.0.weight"), tensors.get("label_emb.weight")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("input_blocks.")}
    channels = embed.shape[1] if embed is not None and embed.ndim == 2 else None
    return channels, len(blocks), None if labels is None or not labels.ndim else len(labels)


def _signature_text(tensors: Mapping[str, np.ndarray]) -> str:
    channels, blocks, classes = _signature(tensors)
    return f"{len(tensors)} tensors, {channels} channels, {blocks} input blocks, {classes or 'no'} classes"


def _as_run(spec: UNetSpec) -> UNetSpec:
    """The architecture without what matters to training alone."""
    return dataclasses.replace(spec, dropout=0.0)


@functools.cache
def _shapes_as_run(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    return store.shapes_of(nnx.eval_shape(lambda: UNet(spec, part="all", rngs=nnx.Rngs(0))))


def _shapes(spec: UNetSpec) -> dict[str, tuple[int, ...]]:
    return _shapes_as_run(_as_run(spec))


def define_flags(values: flags.FlagValues) -> flags.FlagValues:
    """The program's flags, defined on `values`."""
    names = list(PRESETS)
    flags.DEFINE_string("output", None, "folder for the converted weights", flag_values=values)
    flags.DEFINE_enum(
        "download", None, names, "fetch this released model into the output folder first", flag_values=values
    )
    flags.DEFINE_enum(
        "preset", None, names, "the released model that the checkpoint is built like", flag_values=values
    )
    flags.DEFINE_string(
        "architecture", None, "JSON file of guided-diffusion's flags, for others", flag_values=values
    )
    flags.DEFINE_enum("part", "encoder", list(PARTS), "what to keep", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", list(DTYPES), "how to store it", flag_values=values)
    flags.DEFINE_string("address", ADDRESS, "where the released files lie (for a mirror)", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace weights that are there", flag_values=values)
    return values


def convert_file(argv: Sequence[str], options: flags.FlagValues) -> None:
    """What the command line asks for."""
    if (len(argv) == 2) == bool(options.download) or len(argv) > 2 or not options.output:
        raise UsageError("give one checkpoint, or --download NAME, and --output FOLDER")
    if options.preset and options.architecture:
        raise UsageError("give --preset or --architecture, not both")
    refuse_existing(Path(options.output) / store.FILE, options.overwrite)
    architecture = None
    if options.architecture:
        try:
            architecture = json.loads(Path(options.architecture).read_text())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{options.architecture}: expected a JSON file of flags: {error}") from error
    if options.download:
        source = Path(options.output) / f"{options.download}.pt"
        size, sha256 = RELEASED.get(options.download, (None, None))
        sha256 = fetch(options.address + source.name, source, size=size, sha256=sha256)
    else:
        source = Path(argv[1])
        sha256 = sha256_of(source, progress=True)
    preset = options.preset or (options.download if architecture is None else None)
    spec, tensors = convert(
        read_torch(source),
        where=str(source),
        name=source.stem,
        preset=preset,
        architecture=architecture,
        part=options.part,
    )
    path = store.save(
        options.output,
        "unet",
        tensors,
        spec.to_dict(),
        dtype=DTYPES[options.dtype],
        progress=True,
        part=options.part,
        source=source.name,
        source_sha256=sha256,
    )
    count = sum(tensor.size for tensor in tensors.values())
    print(
        f"{path}: {count:,} parameters ({options.part}, {options.dtype}) of {source.name}, SHA-256 {sha256}"
    )
    if options.download:
        print(f"{source} has done its work and may be removed")


def main(argv: Sequence[str]) -> None:
    convert_file(argv, flags.FLAGS)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    run(main)
