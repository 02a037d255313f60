"""The converter of classifiers as a program, and what it refuses."""

import numpy as np
import pytest
from absl import flags

from convert_weights import perceptual
from convert_weights.perceptual import convert
from difflid_jax.metrics.lpips import Lpips
from difflid_jax.weights import store


def run(*arguments: str) -> None:
    options = perceptual.define_flags(flags.FlagValues())
    perceptual.main(options(["perceptual", *arguments]), options)


def test_lpips_becomes_a_folder_that_measures_the_same(tmp_path, capsys):
    run("--network=lpips_alex", f"--output={tmp_path}")
    assert "lpips, 2,470,848 parameters, from alexnet.ckpt" in capsys.readouterr().out
    a, b = np.random.default_rng(0).random((2, 1, 32, 40, 3)).astype(np.float32)
    np.testing.assert_array_equal(Lpips("alex", weights=tmp_path)(a, b), Lpips("alex")(a, b))
    with pytest.raises(ValueError, match=r"expected LPIPS weights for 'vgg', found .*alex"):
        Lpips("vgg", weights=tmp_path)
    assert len(store.read_metadata(tmp_path)["source_sha256"]) == 64


def test_a_file_whose_name_belies_its_content_is_refused(tmp_path):
    source = tmp_path / "resnet50-0676ba61.pth"
    source.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="expected a SHA-256 that starts with 0676ba61, as its name says"):
        run("--network=resnet50", f"--source={source}", f"--output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", [[np.zeros(3)], {0: np.zeros(3)}, np.zeros(3)])
def test_a_file_without_a_state_dict_is_refused(state):
    with pytest.raises(ValueError, match=r"x\.pth: expected a state dict .* of resnet50"):
        convert("resnet50", state, where="x.pth")
