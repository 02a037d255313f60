"""python -m difflid_jax.check_data: the report, the sheet, the exit status."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from difflid_jax.images.files import read_image, write_png


def check(*arguments, cwd):
    command = [sys.executable, "-m", "difflid_jax.check_data", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def photo(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((60, 50), Image.Resampling.BICUBIC))


@pytest.fixture
def lol(tmp_path):
    for part, seeds in (("our485", (1, 2, 3)), ("eval15", (7,))):
        for seed in seeds:
            for role, gain in (("low", 0.2), ("high", 1.0)):
                (tmp_path / "LOL" / part / role).mkdir(parents=True, exist_ok=True)
                image = np.rint(photo(seed) * gain).astype(np.uint8)
                write_png(tmp_path / "LOL" / part / role / f"{seed}.png", image)
    return tmp_path / "LOL"


def test_every_part_is_checked_and_a_sheet_is_written(lol, tmp_path):
    result = check(lol, "--dataset=lol_v1", "--sheet=sheet.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "LOL-v1: 3 of 485 pairs" in result.stdout and "LOL-v1: 1 of 15 pairs" in result.stdout
    assert "LEAK" not in result.stdout
    assert result.stdout.endswith("Usable; see the warnings.\n")
    sheet = read_image(tmp_path / "sheet.png")
    assert (sheet != 255).any(-1).mean() > 0.3
    assert sheet.shape[0] > 4 * 50 and sheet.shape[1] > 2 * 60
    assert {path.name for path in tmp_path.iterdir()} == {"LOL", "sheet.png"}


def test_a_leak_between_the_parts_ends_with_status_1(lol, tmp_path):
    Image.fromarray(photo(2)).save(lol / "eval15" / "high" / "7.jpg", quality=90)
    (lol / "eval15" / "high" / "7.png").unlink()
    result = check(lol, "--dataset=lol_v1", "--sheet=off", cwd=tmp_path)
    assert result.returncode == 1
    assert "LEAK: 1 test photographs are also among the training photographs" in result.stdout
    assert "eval15/high/7.jpg shows" in result.stdout and "our485/high/2.png" in result.stdout
    assert not list(tmp_path.glob("*.png"))


def test_leaks_into_another_set(lol, tmp_path):
    arguments = (lol / "our485", "--dataset=lol_v1", "--split=train", "--sheet=off", "--test")
    assert "LEAK" not in check(*arguments, lol / "eval15", "--test_dataset=folders", cwd=tmp_path).stdout
    shutil.copy(lol / "our485" / "high" / "1.png", lol / "eval15" / "high" / "7.png")
    result = check(*arguments, lol / "eval15", "--test_dataset=folders", cwd=tmp_path)
    assert result.returncode == 1 and "LEAK: 1 test files are also training files" in result.stdout


def test_damage_and_missing_partners_end_with_status_1_and_names(lol, tmp_path):
    broken = lol / "our485" / "low" / "2.png"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    (lol / "our485" / "high" / "3.png").unlink()
    result = check(lol, "--dataset=lol_v1", cwd=tmp_path)
    assert result.returncode == 1
    assert f"{broken}: a damaged" in result.stdout and "low/3.png has no clean “3”" in result.stdout
    assert "LOL-v1: 1 of 485 pairs (2 left out)" in result.stdout
    assert (tmp_path / "pairs_lol_v1.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "absent: no such folder"),
        ([], "expected one ROOT, found 0"),
        (["LOL", "--dataset=nothing"], "value should be one of <its|sots_indoor"),
        (["LOL/our485/low"], "expected a folder named hazy|haze"),
    ],
)
def test_refusals_are_one_line_and_status_2(lol, tmp_path, arguments, words):
    result = check(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not list(tmp_path.glob("*.png"))


def test_a_whole_set_can_be_written_for_tfds(lol, tmp_path):
    result = check(lol, "--dataset=lol_v1", "--sheet=off", "--tfds=built", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "TFDS data set: built/dehazing_pairs/lol_v1/1.0.0" in result.stdout
    assert (tmp_path / "built" / "dehazing_pairs" / "lol_v1" / "1.0.0" / "dataset_info.json").is_file()


def test_a_part_that_is_not_there_is_said(lol, tmp_path):
    shutil.rmtree(lol / "eval15")
    result = check(lol, "--dataset=lol_v1", "--sheet=off", cwd=tmp_path)
    assert result.returncode == 0 and "note     the part “test” is not here" in result.stdout
