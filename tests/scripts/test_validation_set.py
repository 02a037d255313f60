"""The script that makes a small validation set."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from PIL import Image

from difflid_jax.cli import UsageError
from difflid_jax.data.pairing.pairs import find_pairs, load_pair

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "validation_set.py"
validation_set = SimpleNamespace(**runpy.run_path(SCRIPT))


def small_set(*arguments):
    values = flags.FlagValues()
    validation_set.define_flags(values)
    values(["validation_set", *map(str, arguments)])
    validation_set.main([""], values)


def image(path, value, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def test_pairs_of_several_sets_become_one(tmp_path, capsys):
    for scene in (1300, 1301, 1302):
        image(tmp_path / "sots" / "hazy" / f"{scene}_1.png", scene - 1200, (80, 64))
        image(tmp_path / "sots" / "gt" / f"{scene}.png", scene - 1280, (100, 84))
    image(tmp_path / "mine" / "hazy" / "a.png", 9, (48, 48))
    image(tmp_path / "mine" / "clean" / "a.png", 3, (48, 48))
    sets = (f"--set=sots_indoor={tmp_path / 'sots'}:2", f"--set=folders={tmp_path / 'mine'}")
    small_set(f"--output={tmp_path / 'V'}", *sets)
    assert "3 pairs" in capsys.readouterr().out
    pairs, _ = find_pairs(tmp_path / "V", "folders", progress=False)
    found = {pair.name: [(x.shape[:2], int(np.median(x))) for x in load_pair(pair)] for pair in pairs}
    assert [value for _, value in sorted(found.items())] == [
        [((16, 20), 100), ((16, 20), 20)],
        [((16, 20), 102), ((16, 20), 22)],
        [((12, 12), 9), ((12, 12), 3)],
    ]
    with pytest.raises(UsageError, match="already exists"):
        small_set(f"--output={tmp_path / 'V'}", *sets)
    for wrong in ("nothing", "its", f"folders={tmp_path / 'mine'}:0"):
        with pytest.raises(UsageError, match="--set: expected"):
            small_set(f"--output={tmp_path / 'W'}", f"--set={wrong}")
    for name in ("1_0.8_0.08", "1_0.8_0.2"):
        image(tmp_path / "outdoor" / "hazy" / f"{name}.png", 9, (48, 48))
    image(tmp_path / "outdoor" / "gt" / "1.png", 3, (48, 48))
    with pytest.raises(UsageError, match=r"would both become 0-1_0.8_0.png"):
        small_set(f"--output={tmp_path / 'W'}", f"--set=sots_outdoor={tmp_path / 'outdoor'}")


def test_light_dims_both_images_of_a_pair_alike(tmp_path):
    for number in range(12):
        image(tmp_path / "mine" / "hazy" / f"room{number}.png", 200, (48, 48))
        image(tmp_path / "mine" / "clean" / f"room{number}.png", 100, (48, 48))
    sets = f"--set=folders={tmp_path / 'mine'}"
    small_set(f"--output={tmp_path / 'V'}", sets, "--light=0.4,0.8")
    pairs, _ = find_pairs(tmp_path / "V", "folders", progress=False)
    values = np.array([[np.unique(x).item() for x in load_pair(pair)] for pair in pairs])
    assert (np.abs(values[:, 0] - 2 * values[:, 1]) <= 1).all()
    assert 80 <= values[:, 0].min() < 110 and 130 < values[:, 0].max() <= 160
    within = "--light: expected 0.001 ≤ low ≤ high ≤ 1, found"
    for wrong, message in (("0.8,0.4", within), ("0,1", within), ("dim", "--light: expected two numbers")):
        with pytest.raises(ValueError, match=message):
            small_set(f"--output={tmp_path / 'W'}", sets, f"--light={wrong}")
