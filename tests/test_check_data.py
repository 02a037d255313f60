"""python -m difflid_jax.check_data: the report, the sheet, the exit status."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from difflid_jax import check_data
from difflid_jax.cli import UsageError
from difflid_jax.images.files import read_image, write_png


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """(exit status, standard output) of the program, run in this process within `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(root, *arguments):
        values = flags.FlagValues()
        check_data.define_flags(values)
        values(["check_data", *map(str, arguments)])
        return check_data.main(["", str(root)], values), capsys.readouterr().out

    return run


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


def test_every_part_is_checked_and_a_sheet_is_written_once(lol, tmp_path, check):
    status, output = check(lol, "--dataset=lol_v1")
    assert status == 0
    assert "LOL-v1: 3 of 485 pairs" in output and "LOL-v1: 1 of 15 pairs" in output
    assert "LEAK" not in output and output.endswith("Usable; see the warnings.\n")
    sheet = read_image(tmp_path / "pairs_lol_v1.png")
    assert (sheet != 255).any(-1).mean() > 0.3
    assert sheet.shape[0] > 4 * 50 and sheet.shape[1] > 2 * 60
    assert {path.name for path in tmp_path.iterdir()} == {"LOL", "pairs_lol_v1.png"}
    with pytest.raises(UsageError, match=r"pairs_lol_v1\.png: already exists; --overwrite replaces it"):
        check(lol, "--dataset=lol_v1")
    shutil.rmtree(lol / "eval15")
    status, output = check(lol, "--dataset=lol_v1", "--overwrite")
    assert status == 0 and "note     the part “test” was not found" in output


def test_leaks_between_parts_and_sets_end_with_status_1(lol, tmp_path, check):
    other = (lol / "our485", "--dataset=lol_v1", "--split=train", "--sheet=off")
    other += (f"--test={lol / 'eval15'}", "--test_dataset=folders")
    assert "LEAK" not in check(*other)[1]
    shutil.copy(lol / "our485" / "high" / "1.png", lol / "eval15" / "high" / "7.png")
    status, output = check(*other)
    assert status == 1 and "LEAK: 1 test files are also training files" in output
    Image.fromarray(photo(2)).save(lol / "eval15" / "high" / "7.jpg", quality=90)
    (lol / "eval15" / "high" / "7.png").unlink()
    status, output = check(lol, "--dataset=lol_v1", "--sheet=off")
    assert status == 1
    assert "LEAK: 1 test photographs are also among the training photographs" in output
    assert "eval15/high/7.jpg shows" in output and "our485/high/2.png" in output
    assert "LEAK" in check(*other)[1] and "LEAK" not in check(*other, "--quick")[1]
    assert not list(tmp_path.glob("*.png"))


def test_damage_and_missing_partners_end_with_status_1_and_names(lol, tmp_path, check):
    broken = lol / "our485" / "low" / "2.png"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    (lol / "our485" / "high" / "3.png").unlink()
    status, output = check(lol, "--dataset=lol_v1")
    assert status == 1
    assert f"{broken}: a damaged" in output and "low/3.png has no clean “3”" in output
    assert "LOL-v1: 1 of 485 pairs (2 left out)" in output
    assert (tmp_path / "pairs_lol_v1.png").is_file()


def test_a_complete_set_can_be_written_for_tfds(lol, tmp_path, check):
    status, output = check(lol, "--dataset=lol_v1", "--sheet=off", "--tfds=built")
    assert status == 0 and "TFDS data set: built/dehazing_pairs/lol_v1/1.0.0" in output
    assert (tmp_path / "built" / "dehazing_pairs" / "lol_v1" / "1.0.0" / "dataset_info.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected one ROOT, found 0"),
        (["LOL", "--dataset=nothing"], "value should be one of <its|sots_indoor"),
        (["LOL/our485/low"], "expected a folder named hazy|haze"),
    ],
)
def test_refusals_are_one_line_and_status_2(lol, tmp_path, arguments, words):
    command = [sys.executable, "-m", "difflid_jax.check_data", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("check_data: ") and words in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not list(tmp_path.glob("*.png"))
