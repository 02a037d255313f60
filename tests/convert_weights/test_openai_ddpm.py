"""Checkpoints of guided-diffusion through the whole path: file, names, layouts, network, numbers."""

import dataclasses
import functools
import hashlib
import http.server
import json
import struct
import threading
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from convert_weights import openai_ddpm
from convert_weights.guided_diffusion_flags import spec_from_flags
from difflid_jax.cli import UsageError
from difflid_jax.diffusion.presets import PRESETS
from difflid_jax.diffusion.schedule import Schedule
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.features.prior import load_prior
from difflid_jax.weights import store
from difflid_jax.weights.rules import map_tensors
from difflid_jax.weights.torch_file import read_torch

REPOSITORY = Path(__file__).resolve().parents[2]
FLAGS_OF = {
    "adm": {
        "image_size": 16,
        "num_channels": 64,
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "attention_resolutions": "8",
        "channel_mult": "0.5,1",
        "dropout": 0.1,
        "resblock_updown": True,
        "learn_sigma": True,
    },
    "legacy": {
        "image_size": 16,
        "num_channels": 32,
        "num_res_blocks": "1",
        "num_heads": 2,
        "attention_resolutions": [16, 8],
        "channel_mult": "1,2",
        "class_cond": "True",
        "use_scale_shift_norm": False,
        "use_new_attention_order": True,
        "use_fp16": True,
    },
    "adm_small": {
        "image_size": 32,
        "num_channels": 32,
        "num_head_channels": 16,
        "attention_resolutions": "16,8",
        "channel_mult": "1,1,2",
        "resblock_updown": True,
        "learn_sigma": True,
    },
    "adm_legacy": {
        "image_size": 16,
        "num_channels": 32,
        "num_res_blocks": 1,
        "num_heads": 2,
        "attention_resolutions": "16,8",
        "channel_mult": "1,2",
        "class_cond": True,
        "use_scale_shift_norm": False,
        "use_new_attention_order": True,
        "learn_sigma": True,
    },
}


def relative_error(ours, reference):
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


@pytest.fixture(scope="module")
def values():
    with np.load(REPOSITORY / "tests" / "golden" / "unet_named.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def states(values, named_draw):
    """State dicts of the two reference networks, drawn by name."""
    found = {}
    for tag in ("adm", "legacy"):
        lines = [line.split() for line in values[f"{tag}.names"]]
        shapes = {name: tuple(map(int, shape.split(","))) for name, shape in lines}
        found[tag] = {name: named_draw(name, shape, 0, 0.7) for name, shape in shapes.items()}
    return found


def run(unet, x, t, y, wanted):
    graph, parameters = nnx.split(unet)

    @jax.jit
    def layers(parameters, x, t, y):
        return nnx.merge(graph, parameters).layers(x, t, y, wanted=wanted)

    return layers(parameters, x, t, y)


def filled(spec, tensors, part="all"):
    unet = nnx.eval_shape(lambda: UNet(spec, part=part, rngs=nnx.Rngs(0)))
    store.fill(unet, tensors, where="converted")
    return unet


@pytest.mark.parametrize("tag", ["adm", "legacy"])
def test_each_block_and_the_whole_equal_the_reference(values, states, tag):
    """Float32 sums in another order differ by about 1e-7 a layer: 1e-5 a block, 3e-5 at the end."""
    spec, tensors = openai_ddpm.convert(states[tag], where="x", architecture=FLAGS_OF[tag], part="all")
    wanted = ["middle", "output", *(f"{side}:{i}" for side in ("encoder", "decoder") for i in range(4))]
    labels = values.get(f"{tag}.y")
    found = run(
        filled(spec, tensors),
        values[f"{tag}.x"].transpose(0, 2, 3, 1),
        values[f"{tag}.t"],
        None if labels is None else jnp.asarray(labels, jnp.int32),
        wanted,
    )
    for name in wanted:
        ours = found[name] if name == "output" else found[name][..., ::5]
        assert relative_error(ours, values[f"{tag}.{name}"]) <= (3e-5 if name == "output" else 1e-5), name


@pytest.mark.parametrize("tag", ["adm_small", "adm_legacy"])
def test_the_larger_references_agree_too(golden, tmp_path, tag):
    """From the `.pt` file through the converted folder; relative error as above."""
    spec, tensors = openai_ddpm.convert(
        read_torch(golden / f"{tag}.pt"), where="x", architecture=FLAGS_OF[tag], part="all"
    )
    store.save(tmp_path, "unet", tensors, spec.to_dict())
    unet = load_prior(tmp_path, part="all").unet
    with np.load(golden / f"{tag}.npz") as file:
        values = dict(file)
    encoder = sum(name.startswith("input_blocks.") for name in values)
    decoder = sum(name.startswith("output_blocks.") for name in values)
    theirs = {"middle": "middle_block", "output": "out"}
    theirs |= {f"encoder:{i}": f"input_blocks.{i}" for i in range(encoder)}
    theirs |= {f"decoder:{i}": f"output_blocks.{i}" for i in range(decoder)}
    labels = jnp.asarray(values["y"], jnp.int32) if "y" in values else None
    found = run(unet, values["x"].transpose(0, 2, 3, 1), values["t"], labels, list(theirs))
    embedded = unet.embed(jnp.asarray(values["t"]), labels)
    if "y" not in values:
        assert relative_error(embedded, values["time_embed"]) <= 1e-5
    assert encoder > 3 and decoder > 3
    for name, reference in theirs.items():
        error = relative_error(found[name], values[reference].transpose(0, 2, 3, 1))
        assert error <= (3e-5 if name == "output" else 1e-5), name


@pytest.mark.slow
def test_the_released_architecture_agrees_at_full_size(golden, named_draw, tmp_path):
    """All 552,814,086 parameters of 256x256_diffusion_uncond, drawn by name, through the converted file."""
    spec = PRESETS["256x256_diffusion_uncond"]
    back = [rule.reversed() for rule in openai_ddpm.RULES]

    class Drawn:
        """A tensor that is drawn when it is written, and forgotten again."""

        dtype = np.dtype(np.float32)

        def __init__(self, ours, shape):
            self.shape = shape
            (self.rule,) = (rule for rule in back if rule.pattern.fullmatch(ours))
            self.theirs = self.rule.rename(self.rule.pattern.fullmatch(ours))
            self.source_shape = self.rule.layout.forward(np.broadcast_to(np.float32(0), shape)).shape

        def __array__(self, dtype=None, copy=None):
            return self.rule.layout.backward(named_draw(self.theirs, self.source_shape, 0, 0.7))

    shapes = openai_ddpm._shapes(spec)
    store.save(tmp_path, "unet", {name: Drawn(name, shape) for name, shape in shapes.items()}, spec.to_dict())
    unet = load_prior(tmp_path, part="all").unet
    (tmp_path / store.FILE).unlink()
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(unet, nnx.Param))) == 552_814_086
    with np.load(golden / "adm_imagenet256_named.npz") as file:
        values = dict(file)
    names = {"encoder:17": "input_blocks.17", "middle": "middle_block", "decoder:2": "output_blocks.2"}
    names["output"] = "out"
    found = run(unet, values["x"].transpose(0, 2, 3, 1), values["t"], None, list(names))
    for name, reference in names.items():
        error = relative_error(found[name], values[reference].transpose(0, 2, 3, 1))
        assert error <= (3e-5 if name == "output" else 1e-5), (name, error)


@pytest.mark.parametrize("tag", ["adm", "legacy"])
def test_exported_parameters_equal_the_source_bit_for_bit(states, tag):
    spec, tensors = openai_ddpm.convert(states[tag], where="x", architecture=FLAGS_OF[tag], part="all")
    ours = store.tensors_of(filled(spec, tensors))
    shapes = {name: tensor.shape for name, tensor in states[tag].items()}
    back = map_tensors(ours, [rule.reversed() for rule in openai_ddpm.RULES], (), shapes, where="back")
    assert back.keys() == states[tag].keys()
    for name, tensor in states[tag].items():
        assert back[name].dtype == tensor.dtype and back[name].tobytes() == tensor.tobytes(), name


def test_the_encoder_alone_is_kept_by_default(states):
    spec, tensors = openai_ddpm.convert(states["adm"], where="x", architecture=FLAGS_OF["adm"])
    assert not any(name.startswith(("output_blocks", "out_")) for name in tensors)
    assert any(name.startswith("middle_block.2.") for name in tensors)
    filled(spec, tensors, part="encoder")


@functools.cache
def preset_state(name):
    """A state dict with the names and shapes of a released model, in no memory to speak of."""
    shapes = openai_ddpm._shapes(PRESETS[name])
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    back = [rule.reversed() for rule in openai_ddpm.RULES]
    theirs = {}
    for key, tensor in zeros.items():
        (rule,) = (rule for rule in back if rule.pattern.fullmatch(key))
        theirs[rule.rename(rule.pattern.fullmatch(key))] = rule.layout.forward(tensor)
    return theirs


def identified(state, **changes):
    state = state | changes
    return openai_ddpm.presets_that_fit({name: w for name, w in state.items() if w is not None})


def test_a_released_model_is_known_by_names_and_shapes():
    state = preset_state("64x64_diffusion")
    assert identified(state) == ["64x64_diffusion"]
    classes, width = state["label_emb.weight"].shape
    assert classes == 1000
    assert identified(state, **{"label_emb.weight": np.zeros((7, width))}) == []
    assert identified(state, **{"out.2.bias": np.zeros(3)}) == []
    assert identified(state, **{"out.2.bias": None}) == []
    assert identified(state, surplus=np.zeros(3)) == []


@pytest.mark.slow
def test_every_released_model_is_known():
    alike = ["256x256_diffusion_uncond", "lsun_bedroom", "lsun_cat", "lsun_horse", "lsun_horse_nodropout"]
    for name in PRESETS:
        assert identified(preset_state(name)) == (alike if name in alike else [name])
    for name in (alike[0], "renamed"):
        spec, _ = openai_ddpm.convert(preset_state(alike[0]), where="x", name=name)
        assert spec == PRESETS[alike[0]]


@pytest.fixture
def small_presets(monkeypatch):
    """Three released models, as it were: two that differ in dropout alone, and one of another shape."""
    specs = {tag: spec_from_flags(FLAGS_OF[tag], classes=5, where="x") for tag in ("adm", "legacy")}
    presets = {
        "first": specs["adm"],
        "second": dataclasses.replace(specs["adm"], dropout=0.3),
        "third": specs["legacy"],
    }
    monkeypatch.setattr(openai_ddpm, "PRESETS", presets)
    return presets


def test_models_that_differ_in_training_alone_need_no_preset(small_presets, states):
    assert identified(states["adm"]) == ["first", "second"]
    for name, expected in [("second", "second"), ("first", "first"), ("model", "first")]:
        spec, _ = openai_ddpm.convert(states["adm"], where="x", name=name)
        assert spec == small_presets[expected]


def test_models_that_differ_in_more_are_not_guessed(small_presets, states):
    small_presets["second"] = dataclasses.replace(small_presets["first"], noise_schedule="cosine")
    message = refused(states["adm"], name="second")
    assert "fits 2 of the released models" in message and "--architecture=FILE" in message
    spec, _ = openai_ddpm.convert(states["adm"], where="x", preset="second")
    assert spec.noise_schedule == "cosine"


def refused(state, **options):
    with pytest.raises(ValueError) as error:
        openai_ddpm.convert(state, where="x.pt", **options)
    assert str(error.value).startswith("x.pt: ")
    return str(error.value)


def test_an_unknown_model_asks_for_its_flags(states):
    message = refused(states["adm"])
    assert "fits none of the released models" in message and "--architecture=FILE" in message


def test_another_architecture_lists_what_differs_and_the_preset_that_fits(small_presets, states):
    for options in ({"preset": "third"}, {"architecture": FLAGS_OF["legacy"] | {"class_cond": False}}):
        message = refused(states["adm"], **options)
        assert "missing" in message and "unexpected" in message and "of another shape" in message
        assert message.endswith("it fits --preset=first or second")
    damaged = states["adm"] | {"surplus": np.zeros(2, np.float32)}
    damaged["out.2.bias"] = np.zeros(5, np.float32)
    del damaged["middle_block.1.norm.weight"]
    message = refused(damaged, architecture=FLAGS_OF["adm"])
    assert "surplus has no rule" in message
    assert "1 missing: middle_block.1.norm.scale" in message
    assert "out_conv.bias (expected (6,), found (5,))" in message
    assert "--preset" not in message
    alone = refused(damaged)
    assert (
        "fits none" in alone and "the nearest is first: the tensors do not fit: surplus has no rule" in alone
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([1], "found a list"),
        ({}, "found a dict"),
        ({"model": {}, "epoch": 3}, "not tensors: model, epoch; save the state dict alone"),
        ({"w": np.zeros(2, np.int64)}, "w (int64)"),
        ({3: np.zeros(2, np.float32)}, "not tensors: 3"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, says):
    assert says in refused(state)


def test_prefixes_of_wrappers_are_stripped(small_presets, states):
    """DataParallel and torch.compile, in either order, also of a part of the model."""
    spec, plain = openai_ddpm.convert(states["adm"], where="x", architecture=FLAGS_OF["adm"])
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        wrapped = {
            prefix + name.replace("middle_block.", "middle_block._orig_mod."): tensor
            for name, tensor in states["adm"].items()
        }
        found, tensors = openai_ddpm.convert(wrapped, where="x", architecture=FLAGS_OF["adm"])
        assert found == spec and tensors.keys() == plain.keys()
    both = states["adm"] | {"module.out.2.bias": np.zeros(6, np.float32)}
    assert "holds out.2.bias twice" in refused(both)
    strange = {f"net.{name}": tensor for name, tensor in states["adm"].items()}
    assert len(refused(strange, architecture=FLAGS_OF["adm"])) < 1000


def test_infinite_weights_are_refused(states):
    state = states["adm"] | {"time_embed.0.bias": np.full(256, np.nan, np.float32)}
    assert "time_embed.0.bias" in refused(state, architecture=FLAGS_OF["adm"])


def test_flags_give_the_presets():
    common = {"learn_sigma": True, "resblock_updown": True, "attention_resolutions": "32,16,8"}
    large = common | {"num_channels": 256, "num_head_channels": 64}
    given = {
        "256x256_diffusion_uncond": large | {"image_size": 256},
        "256x256_diffusion": large | {"image_size": 256, "class_cond": True},
        "512x512_diffusion": large | {"image_size": 512, "class_cond": True},
        "128x128_diffusion": common | {"image_size": 128, "num_channels": 256, "class_cond": True},
        "64x64_diffusion": common
        | {"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "num_head_channels": 64}
        | {"class_cond": True, "dropout": 0.1, "noise_schedule": "cosine", "use_new_attention_order": True},
    }
    for name, flags in given.items():
        spec = spec_from_flags(flags, classes=1000, where="x")
        heads = [spec.heads(c) for c in (256, 512, 1024)]
        assert heads == [PRESETS[name].heads(c) for c in (256, 512, 1024)]
        assert UNetSpec(**{**vars(spec), "num_heads": PRESETS[name].num_heads}) == PRESETS[name]
    assert spec_from_flags({}, classes=None, where="x").attention_resolutions == (4, 8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "expected a JSON object"),
        ({"channels": 3}, "not flags of guided-diffusion: channels"),
        ({"num_channels": "many"}, "num_channels: expected int, found 'many'"),
        ({"num_channels": 1.5}, "num_channels: expected int"),
        ({"num_channels": True}, "num_channels: expected int"),
        ({"num_channels": 0}, "unet.model_channels: expected 1 to 4,096"),
        ({"num_channels": None}, "num_channels: expected int"),
        ({"class_cond": 2}, "class_cond: expected bool"),
        ({"class_cond": True}, "no label_emb.weight"),
        ({"channel_mult": "1,x"}, "channel_mult: expected numbers"),
        ({"channel_mult": [1, -1]}, "unet.channel_mult[1]: expected 0 to 64, found -1"),
        ({"channel_mult": [1, float("nan")]}, "unet.channel_mult[1]: expected a finite number"),
        ({"channel_mult": [1] * 100}, "unet.channel_mult: expected a list of at most 16 numbers"),
        ({"channel_mult": 3}, "channel_mult: expected numbers"),
        ({"num_res_blocks": 10**9}, "unet.num_res_blocks: expected 1 to 16"),
        ({"num_channels": 10**400}, "num_channels: expected int"),
        ({"dropout": float("inf")}, "dropout"),
        ({"image_size": 48}, "channel_mult has no default for image_size 48"),
        ({"attention_resolutions": "128"}, "image sizes from 1 to 64"),
        ({"attention_resolutions": "0"}, "image sizes from 1 to 64"),
        ({"attention_resolutions": "0.5"}, "image sizes from 1 to 64"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule: expected one of linear, cosine"),
        ({"num_heads_upsample": 2}, "num_heads_upsample"),
        ({"predict_xstart": True}, "predict_xstart"),
        ({"rescale_timesteps": True, "diffusion_steps": 4000}, "rescale_timesteps"),
    ],
)
def test_flags_that_make_no_sense_are_named(given, says):
    with pytest.raises(ValueError) as error:
        spec_from_flags(given, classes=None, where="flags.json")
    assert str(error.value).startswith("flags.json: ") and says in str(error.value)


def test_flags_that_no_network_can_have_are_refused(states):
    flags = FLAGS_OF["adm"] | {"num_head_channels": 13}
    assert "no network can be built from these flags" in refused(states["adm"], architecture=flags)


def write_checkpoint(path, state):
    """What torch.save writes for a state dict, as far as a reader looks at it."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    pickled = b"\x80\x02}("
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, tensor) in enumerate(state.items()):
            strides = [stride // tensor.itemsize for stride in tensor.strides]
            pickled += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
            pickled += b"ctorch\nFloatStorage\n" + text(str(key)) + text("cpu")
            pickled += b"J" + struct.pack("<i", tensor.size) + b"tQK\x00"
            pickled += numbers(tensor.shape) + numbers(strides) + b"\x89}tR"
            archive.writestr(f"model/data/{key}", tensor.tobytes())
        archive.writestr("model/data.pkl", pickled + b"u.")
    return path


def run_program(*arguments):
    options = openai_ddpm.define_flags(openai_ddpm.flags.FlagValues())
    openai_ddpm.main(options(["openai_ddpm", *map(str, arguments)]), options)


def test_the_program_converts_a_file_and_says_so(states, tmp_path, capsys):
    source = write_checkpoint(tmp_path / "model.pt", states["adm"])
    flags = tmp_path / "flags.json"
    flags.write_text(json.dumps(FLAGS_OF["adm"]))
    run_program(source, "--output", tmp_path / "out", "--architecture", flags, "--dtype", "bfloat16")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    done = capsys.readouterr()
    assert digest in done.out and "writing" in done.err
    weights = store.read(tmp_path / "out", "unet")
    assert UNetSpec.from_dict(weights.architecture) == spec_from_flags(
        FLAGS_OF["adm"], classes=None, where="x"
    )
    assert weights.metadata["source_sha256"] == digest
    assert {tensor.dtype for tensor in weights.tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    with pytest.raises(UsageError, match="already exists; --overwrite"):
        run_program(source, f"--output={tmp_path / 'out'}", f"--architecture={flags}")
    prior = load_prior(tmp_path / "out")
    assert prior.schedule is Schedule.named("linear", 1000)
    with pytest.raises(ValueError, match="holds the encoder only"):
        load_prior(tmp_path / "out", part="all")


def test_the_program_refuses_bad_input(tmp_path):
    empty = tmp_path / "empty.pt"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match="an empty file"):
        run_program(empty, "--output", tmp_path / "out")
    flags = tmp_path / "flags.json"
    flags.write_text("{")
    for arguments, error, says in [
        ([tmp_path / "gone.pt", "--output=out"], FileNotFoundError, "No such file"),
        (["--output=out"], UsageError, "give one checkpoint, or --download NAME"),
        ([empty], UsageError, "and --output FOLDER"),
        ([empty, "--output=out", "--download=lsun_cat"], UsageError, "give one checkpoint, or"),
        ([empty, "--output=out", "--preset=lsun_cat", f"--architecture={flags}"], UsageError, "not both"),
        ([empty, "--output=out", f"--architecture={flags}"], UsageError, "flags.json: expected a JSON file"),
    ]:
        with pytest.raises(error, match=says):
            run_program(*arguments)
    assert not (tmp_path / "out").exists()


def test_a_released_model_is_fetched_verified_and_converted(states, tmp_path, monkeypatch):
    """The connection drops half-way; the small model stands in for a released one."""
    content = write_checkpoint(tmp_path / "served.pt", states["adm"]).read_bytes()
    spec = spec_from_flags(FLAGS_OF["adm"], classes=None, where="x")
    monkeypatch.setitem(openai_ddpm.PRESETS, "lsun_cat", spec)
    known = (len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(openai_ddpm.RELEASED, "lsun_cat", known)
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if start else content[: len(content) // 2])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/models/"
    try:
        run_program("--download=lsun_cat", f"--output={tmp_path / 'out'}", f"--address={address}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == [("/models/lsun_cat.pt", None), ("/models/lsun_cat.pt", f"bytes={len(content) // 2}-")]
    weights = store.read(tmp_path / "out", "unet")
    assert weights.metadata["source_sha256"] == known[1]
    assert UNetSpec.from_dict(weights.architecture) == spec
