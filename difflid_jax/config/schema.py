"""One experiment as an ml_collections ConfigDict: its fields, their checks, and its fingerprint.

`default()` gives every field with the paper's value (Sec. 5.1). The files in `configs/` start from it and
change what their experiment needs; the command line overrides both (`--config.data.batch_size=8`). Only
this file and the programs see a ConfigDict: the functions at the end turn its sections into the frozen
dataclasses and plain values that the rooms take.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from difflid_jax.data.pairing.layouts import LAYOUTS
from difflid_jax.data.pipeline import CropSpec, HazeSpec
from difflid_jax.data.rgbd import FRAMES
from difflid_jax.diffusion.blocks import GROUPS
from difflid_jax.diffusion.schedule import NAMES as SCHEDULES
from difflid_jax.diffusion.unet import UNetSpec
from difflid_jax.features.h_space import HSpaceSpec
from difflid_jax.metrics.protocols import PROTOCOLS
from difflid_jax.network.difflid import PRESETS, NetworkSpec
from difflid_jax.training.loop import LoopSpec
from difflid_jax.training.optimizer import OptimizerSpec

# Two values of such a field give the same trained weights: they may change when a run is resumed.
# (Pictures and prior themselves are compared apart: a run keeps a fingerprint of its data set, and the
# checksum of its prior.)
FREE_FIELDS = (
    "prior",
    "data.train",
    "data.validation",
    "data.test",
    "data.train_ids",
    "data.validation_ids",
    "data.test_ids",
    "data.validation_dataset",
    "data.validation_source",
    "data.test_dataset",
    "data.test_source",
    "data.workers",
    "data.cache",
    "training.minutes",
    "training.log_every",
    "training.evaluate_every",
    "training.checkpoint_every",
    "training.keep",
    "training.max_bad_steps",
    "training.profile_steps",
    "training.tensorboard",
    "training.fsdp",
    "evaluation.batch_size",
)

SOURCES = ("folders", "tfds", "photographs", "rgbd")
FEATURES = ("h_space", "vgg16", "resnet50", "release")

_VARIANTS = {
    "full": ("cim", "hae"),
    "without_cim": ("self_attention", "hae"),
    "without_hae": ("cim", "self_attention"),
    "baseline": ("self_attention", "self_attention"),
}


def default() -> ConfigDict:
    """Every field of an experiment, with the paper's values where it states one."""
    return ConfigDict(
        {
            "seed": 0,
            # Weights of the frozen feature network: the name of shipped weights or a weights folder.
            "prior": "photos64",
            # Weights of a restorer of the same architecture to start from; '' is a random start.
            "init": "",
            "data": {
                "dataset": "its",  # or another of data.layouts.LAYOUTS
                "train": "",  # folder of the training pairs
                "validation": "",  # folder scored during training, on which the best weights are chosen
                "test": "",  # folder scored once, at the end
                # First and last id of the images with depth that a role uses, as in (1, 1299); () is all.
                "train_ids": (),
                "validation_ids": (),
                "test_ids": (),
                "frame": "nyu_mirrored",  # of images with depth: or 'nyu', 'whole' (data.rgbd.FRAMES)
                # Of these two, where they differ from `dataset` and `source`.
                "validation_dataset": "",
                "validation_source": "",
                "test_dataset": "",
                "test_source": "",
                "source": "folders",  # 'folders', 'tfds', 'photographs', 'rgbd' (haze made on the fly)
                "crop": 128,
                "flip": True,
                "scale": (1.0, 1.0),  # pictures are first resized by a factor from this range
                "batch_size": 40,  # over all devices and processes
                "workers": 0,
                "cache": "",  # folder of the decoded cache; '' is <workdir>/cache, 'off' is none
                # > 0: depth of the skies found in photographs without depth, in multiples of the scene's
                # farthest point, so that haze hides them; training only (data.haze.plausible_depth).
                "sky": 0.0,
                # Haze made on the fly; clean to jpeg never apply to evaluation (data.augment.HazeSpec).
                "haze": {
                    "airlight": (0.7, 1.0),
                    "beta": (0.6, 1.8),
                    "seed": 0,
                    "clean": 0.0,
                    "white": 0.0,
                    "tint": 0.0,
                    "gamma": (1.0, 1.0),
                    "light": (1.0, 1.0),
                    "noise": 0.0,
                    "jpeg": (),
                },
            },
            "features": {
                "kind": "h_space",  # 'h_space', 'vgg16', 'resnet50', 'release'
                "layer": "middle",  # 'middle', 'encoder:i', 'decoder:i'
                "times": (0, 500),
                "noise_at_zero": False,
                "side": 0,  # > 0: the prior sees every picture at side×side
                "dtype": "auto",  # bfloat16 on GPU and TPU, float32 on CPU
                "random": False,  # control: the frozen network with random weights
                "noise_seed": 0,  # of the noise at evaluation and in the restorer
            },
            "network": {
                "preset": "paper",  # '' : the widths and heads below
                "widths": (64, 128, 256, 512),
                "heads": 4,
                "variant": "",  # 'full', 'without_cim', 'without_hae', 'baseline' set the next two
                "content": "cim",  # or 'self_attention'
                "haze": "hae",  # or 'self_attention'
                "dtype": "float32",
            },
            "optimizer": {
                "learning_rate": 2e-4,
                "b1": 0.9,
                "b2": 0.999,
                "schedule": "halve",  # 'halve', 'cosine', 'constant'
                "halve_every_epochs": 300,
                "warmup_steps": 0,
                "ema": 0.0,  # decay of the averaged weights; 0: none
                "clip": 0.0,  # global norm of the gradients; 0: none
                "weight_decay": 0.0,
            },
            "training": {
                "epochs": 1200,
                "steps": 0,  # > 0: this many steps, whatever `epochs` says
                "minutes": 0.0,  # > 0: stop after so long; the schedules still follow the steps
                "log_every": 50,
                "evaluate_every": 3500,  # steps; 0: only at the end
                "checkpoint_every": 1000,
                "keep": 3,
                "max_bad_steps": 10,  # stop after so many non-finite steps in a row
                "profile_steps": "",  # 'first:last'
                "fsdp": False,  # shard the frozen network over the devices
                "tensorboard": True,
            },
            "evaluation": {
                "protocol": "paper",
                "batch_size": 1,
                "lpips": True,
                "best": "psnr",
                "limit": 0,  # > 0: score only the first so many pictures during training
            },
        }
    )


def check(config: ConfigDict) -> None:
    """Refuse a config whose fields are missing, misspelt, of a wrong type or out of range.

    Raises:
        ValueError: naming the field, what it must be, and what it is.
    """
    _check_fields(config.to_dict(), default().to_dict(), "")
    require, one_of = _checks(config)
    _check_common(config)
    for field in ("dataset", "validation_dataset", "test_dataset"):
        one_of(f"data.{field}", *LAYOUTS, *([] if field == "dataset" else [""]))
    for field in ("source", "validation_source", "test_source"):
        one_of(f"data.{field}", *SOURCES, *([] if field == "source" else [""]))
    require("data.sky", lambda sky: sky == 0 or 1 <= sky <= 1000, "0, or from 1 to 1000")
    one_of("features.kind", *FEATURES)
    require("features.layer", _is_layer, "'middle', 'encoder:i' or 'decoder:i'")
    one_of("features.dtype", "auto", "float32", "bfloat16")
    one_of("network.preset", "", *PRESETS)
    one_of("network.variant", "", *_VARIANTS)
    one_of("network.dtype", "float32", "bfloat16")

    one_of("evaluation.protocol", *PROTOCOLS)
    require("evaluation.batch_size", _positive, "at least 1")
    one_of("evaluation.best", "psnr", "ssim", *(["lpips"] if config.evaluation.lpips else []))
    require("evaluation.limit", _natural, "0 or more")

    # The rest is checked by the dataclasses that the sections become; their errors name the field.
    for prefix, make in (
        ("config.data.", lambda: haze_spec(config)),
        ("config.data.", lambda: crop_spec(config)),
        ("config.", lambda: h_space_spec(config)),
        ("config.", lambda: network_spec(config, 1)),
    ):
        try:
            make()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{prefix}{error}") from error


def default_prior() -> ConfigDict:
    """Every field of the training of a diffusion prior: a small U-Net of OpenAI's class."""
    shared = default()
    return ConfigDict(
        {
            "seed": 0,
            "init": "",  # weights (kind unet, with the decoder) of the same architecture to start from
            "dtype": "float32",  # of the computation
            "variance_weight": 0.001,  # of the bound that trains the variance (Nichol & Dhariwal 2021)
            "data": {
                "train": "",  # folders or tars of pictures, with commas between
                "validation": "",  # the same, held out; '': no evaluation
                "train_ids": (),  # first and last id of images with depth; () is all
                "validation_ids": (),
                "frame": "nyu_mirrored",  # of images with depth (data.rgbd.FRAMES)
                "crop": 64,
                "scale": (1.0, 1.0),  # pictures are first resized by a factor from this range
                "flip": True,
                "batch_size": 128,
                "workers": 0,
                "cache": "",
            },
            # As diffusion.unet.UNetSpec; attention at these down-sampling rates.
            "unet": {
                "image_size": 64,
                "model_channels": 32,
                "num_res_blocks": 1,
                "attention_resolutions": (8, 16),
                "channel_mult": (1, 2, 3, 4, 4),
                "num_head_channels": 32,
                "dropout": 0.0,
                "noise_schedule": "linear",
            },
            "optimizer": {
                **shared.optimizer.to_dict(),
                "learning_rate": 5e-4,
                "schedule": "cosine",
                "warmup_steps": 300,
                "ema": 0.999,
                "clip": 1.0,
            },
            "training": shared.training.to_dict(),
            "evaluation": {"batches": 4, "sample_steps": 50},
        }
    )


def check_prior(config: ConfigDict) -> None:
    """As `check`, for a config of `default_prior`."""
    _check_fields(config.to_dict(), default_prior().to_dict(), "")
    require, one_of = _checks(config)
    _check_common(config)
    one_of("dtype", "float32", "bfloat16")
    one_of("unet.noise_schedule", *SCHEDULES)
    require("variance_weight", _natural, "0 or more")
    require("data.train", bool, "the path of pictures to train on")
    require("data.crop", _positive, "at least 1")
    require("data.scale", lambda s: len(s) == 2 and 0 < s[0] <= s[1], "two numbers 0 < low <= high")
    require("unet.dropout", _fraction, "within [0, 1)")
    for field in ("image_size", "model_channels", "num_res_blocks", "num_head_channels"):
        require(f"unet.{field}", _positive, "at least 1")
    require("unet.model_channels", lambda n: n % GROUPS == 0, f"a multiple of {GROUPS}, for its norms")
    require("unet.channel_mult", lambda m: m and min(m) >= 1, "whole numbers of at least 1")
    require(
        "unet.num_head_channels",
        lambda n: all(config.unet.model_channels * m % n == 0 for m in config.unet.channel_mult),
        "a divisor of every level's channels",
    )
    require("evaluation.batches", _positive, "at least 1")
    require("evaluation.sample_steps", lambda n: 1 <= n <= 1000, "within 1…1000")


def unet_spec(config: ConfigDict) -> UNetSpec:
    """The U-Net of a config of `default_prior`."""
    return UNetSpec(**config.unet.to_dict())


def haze_spec(config: ConfigDict) -> HazeSpec:
    return HazeSpec(**config.data.haze.to_dict())


def crop_spec(config: ConfigDict) -> CropSpec:
    return CropSpec(size=config.data.crop, flip=config.data.flip, scale=config.data.scale)


def h_space_spec(config: ConfigDict) -> HSpaceSpec:
    section = config.features
    return HSpaceSpec(
        times=section.times,
        layer=section.layer,
        noise_at_zero=section.noise_at_zero,
        side=section.side,
    )


def network_spec(config: ConfigDict, feature_channels: int) -> NetworkSpec:
    """`network.variant` decides the modules of a block where it is given, `preset` the widths."""
    section = config.network
    content, haze = _VARIANTS.get(section.variant, (section.content, section.haze))
    return NetworkSpec(
        widths=PRESETS.get(section.preset, section.widths),
        feature_channels=feature_channels,
        heads=section.heads,
        content=content,
        haze=haze,
    )


def optimizer_spec(config: ConfigDict, number_of_elements: int) -> OptimizerSpec:
    """Epochs become steps: ceil(N / batch size) each, as the paper's authors count them."""
    section = config.optimizer
    return OptimizerSpec(
        steps=total_steps(config, number_of_elements),
        halve_every=section.halve_every_epochs * steps_per_epoch(config, number_of_elements),
        **{
            name: section[name]
            for name in (
                "learning_rate", "b1", "b2", "schedule", "warmup_steps", "clip", "weight_decay", "ema"
            )
        },
    )  # fmt: skip


def loop_spec(
    config: ConfigDict, number_of_elements: int, *, flops: float = 0.0, peak: float = 0.0
) -> LoopSpec:
    section = config.training
    return LoopSpec(
        steps=total_steps(config, number_of_elements),
        batch_size=config.data.batch_size,
        minutes=section.minutes,
        log_every=section.log_every,
        evaluate_every=section.evaluate_every,
        checkpoint_every=section.checkpoint_every,
        max_bad_steps=section.max_bad_steps,
        profile=profile_span(config),
        flops=flops,
        peak=peak,
    )


def steps_per_epoch(config: ConfigDict, number_of_elements: int) -> int:
    return -(-number_of_elements // config.data.batch_size)


def total_steps(config: ConfigDict, number_of_elements: int) -> int:
    """The length of the whole schedule in steps."""
    return config.training.steps or config.training.epochs * steps_per_epoch(config, number_of_elements)


def profile_span(config: ConfigDict) -> tuple[int, int] | None:
    """The first and last step to profile."""
    if not config.training.profile_steps:
        return None
    first, last = config.training.profile_steps.split(":")
    return int(first), int(last)


def fingerprint(config: ConfigDict) -> str:
    """Sixteen hexadecimal digits that name the experiment: equal configs train equal weights."""
    return hashlib.sha256(to_json(_bound(config.to_dict())).encode()).hexdigest()[:16]


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`; its fields are not checked yet. Raises ValueError where it is no config."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("expected a config as a JSON object")
    return ConfigDict(_with_tuples(values))


def differences(config: ConfigDict, before: str) -> list[str]:
    """'config.field is A, was B' for every field that the fingerprint covers and that differs.

    `before` is the other config as `to_json` gives it. Raises ValueError where it is no such text.
    """
    old, new = json.loads(before), json.loads(to_json(config))
    if not isinstance(old, dict):
        raise ValueError("expected a config as a JSON object")
    old, new = _flat(_bound(old)), _flat(_bound(new))
    missing = "not given"
    return [
        f"config.{name} is {new.get(name, missing)!r}, was {old.get(name, missing)!r}"
        for name in sorted({*new, *old})
        if new.get(name, missing) != old.get(name, missing)
    ]


def to_json(config: ConfigDict | dict, indent: int | None = None) -> str:
    """The config as JSON with sorted keys; tuples become lists."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    return json.dumps(values, sort_keys=True, indent=indent)


def check_same_run(config: ConfigDict, path: Path) -> None:
    """Refuse to go on, with `config`, a run whose config was written to `path`.

    Raises ValueError that names every field that differs, but for those that may.
    """
    try:
        differing = differences(config, path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read, so that the checkpoints beside it cannot be resumed; "
            "choose another workdir"
        ) from error
    if differing:
        raise ValueError(
            f"--workdir: {path.parent} holds the run of another config: {'; '.join(differing)}. "
            "Give the config of that run to resume it, or another workdir"
        )


def _positive(value) -> bool:
    return value > 0


def _natural(value) -> bool:
    return value >= 0


def _fraction(value) -> bool:
    return 0 <= value < 1


def _checks(config: ConfigDict) -> tuple[Callable, Callable]:
    """require(field, test, expected) and one_of(field, *choices); both raise ValueError."""

    def require(field: str, test, expected: str) -> None:
        value = _get(config, field)
        if not test(value):
            raise ValueError(f"config.{field} must be {expected}, not {value!r}")

    def one_of(field: str, *choices: str) -> None:
        require(field, lambda value: value in choices, "one of " + ", ".join(repr(c) for c in choices))

    return require, one_of


def _check_common(config: ConfigDict) -> None:
    """The fields that restorer and prior share."""
    require, one_of = _checks(config)
    require("seed", lambda seed: 0 <= seed < 2**32, "within 0…2³²-1")
    require("data.batch_size", _positive, "at least 1")
    require("data.workers", _natural, "0 or more")
    one_of("data.frame", *FRAMES)
    for role in ("train", "validation", "test"):
        if f"{role}_ids" in config.data:
            require(f"data.{role}_ids", _is_id_span, "() or (first, last) with 0 <= first <= last")
    require("optimizer.learning_rate", _positive, "positive")
    require("optimizer.b1", _fraction, "within [0, 1)")
    require("optimizer.b2", _fraction, "within [0, 1)")
    one_of("optimizer.schedule", "halve", "cosine", "constant")
    require("optimizer.halve_every_epochs", _positive, "at least 1")
    require("optimizer.warmup_steps", _natural, "0 or more")
    require("optimizer.ema", _fraction, "within [0, 1)")
    require("optimizer.clip", _natural, "0 (no clipping) or a positive norm")
    require("optimizer.weight_decay", _natural, "0 or more")

    require("training.steps", _natural, "0 or more")
    require("training.epochs", lambda n: n > 0 or config.training.steps > 0, "at least 1")
    require("training.minutes", _natural, "0 or more")
    for field in ("log_every", "checkpoint_every", "keep", "max_bad_steps"):
        require(f"training.{field}", _positive, "at least 1")
    require("training.evaluate_every", _natural, "0 or more")
    require("training.profile_steps", _is_span, "'' or 'first:last' with 1 <= first <= last")


def _check_fields(values: dict, reference: dict, prefix: str) -> None:
    for name in values:
        if name not in reference:
            raise ValueError(
                f"config.{prefix}{name} is no field of a config; there are {', '.join(reference)}"
            )
    for name, expected in reference.items():
        field = f"{prefix}{name}"
        if name not in values:
            raise ValueError(f"config.{field} is missing: start from difflid_jax.config.default()")
        value = values[name]
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise ValueError(
                    f"config.{field} must be a section with {', '.join(expected)}, not {value!r}"
                )
            _check_fields(value, expected, f"{field}.")
        elif type(value) is not type(expected):
            wanted = type(expected).__name__
            raise ValueError(
                f"config.{field} must be of type {wanted}, not {type(value).__name__}: {value!r}"
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{field} must be a finite number, not {value!r}")


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


def _is_layer(layer: str) -> bool:
    part, _, index = layer.partition(":")
    return layer == "middle" or (part in ("encoder", "decoder") and index.isdecimal())


def _is_id_span(ids: tuple) -> bool:
    whole = all(type(number) is int for number in ids)
    return ids == () or (len(ids) == 2 and whole and 0 <= ids[0] <= ids[1])


def _is_span(span: str) -> bool:
    first, _, last = span.partition(":")
    return span == "" or (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _bound(values: dict) -> dict:
    """The fields that decide what is trained."""
    bound = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for field in FREE_FIELDS:
        section, _, name = field.rpartition(".")
        (bound.get(section, {}) if section else bound).pop(name, None)
    return bound


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
