"""Checkpoints of the authors' release become restorers."""

from pathlib import Path

import numpy as np
import pytest
from absl import flags

from convert_weights import difflid_release
from convert_weights.difflid_release import convert
from difflid_jax.cli import UsageError
from difflid_jax.network.release import ReleaseSpec
from difflid_jax.weights import store
from difflid_jax.weights.torch_file import read_torch

CHECKPOINT = Path(__file__).parents[1] / "golden" / "difflid_release.pth"


@pytest.fixture(scope="module")
def checkpoint():
    return read_torch(CHECKPOINT)


def test_a_training_checkpoint_and_its_bare_state_dict_are_the_same(checkpoint):
    training = checkpoint | {"optimizer": {"state": {}}, "scheduler": {"last_epoch": 7}}
    bare = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
    spec, tensors = convert(training, where="a.pth")
    assert spec == ReleaseSpec(width=16, feature_channels=6)
    again = convert(bare, where="b.pth")[1]
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(tensors[name], again[name]) for name in tensors)


def test_what_does_not_fit_is_named(checkpoint):
    model = checkpoint["model"]
    fewer = {name: tensor for name, tensor in model.items() if not name.endswith("concat_convL2.bias")}
    other = model | {"module.final_conv.bias": np.zeros(4, np.float32)}
    for bad, message in (
        ([1, 2], "a.pth: expected a state dict .* of the authors' release, found a list"),
        ({"model": model, "ema": model}, "found unknown entries ema"),
        ({"model": fewer}, "1 missing: merge.1.bias"),
        ({"model": model | {"module.extra.weight": np.zeros(3)}}, "extra.weight has no rule"),
        ({"model": other}, r"head.bias \(expected \(3,\), found \(4,\)\)"),
        ({"time_embed.0.weight": np.zeros((4, 4))}, "convert_weights.openai_ddpm"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(bad, where="a.pth")


def test_the_program_writes_a_restorer(tmp_path):
    def run(*arguments):
        options = difflid_release.define_flags(flags.FlagValues())
        difflid_release.main(options(["difflid_release", *arguments]), options)

    run(str(CHECKPOINT), f"--output={tmp_path / 'w'}")
    weights = store.read(tmp_path / "w", "restorer")
    assert weights.spec(ReleaseSpec) == ReleaseSpec(width=16)
    assert weights.metadata["prior"] == "256x256_diffusion_uncond"
    assert weights.metadata["features"] == {"kind": "release", "times": [0, 500]}
    for arguments in ([str(CHECKPOINT)], [str(CHECKPOINT), f"--output={tmp_path / 'w'}"]):
        with pytest.raises(UsageError, match=r"--output FOLDER|--overwrite"):
            run(*arguments)
