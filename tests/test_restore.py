"""The program: flags, messages and exit status. Its parts are tested in restoration/."""

import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from difflid_jax import restore
from difflid_jax.cli import UsageError
from difflid_jax.images.photos import read_photo
from difflid_jax.restoration import loading


@pytest.fixture
def program(restorer, tmp_path, monkeypatch, capsys):
    """Runs `main` with arguments and the tests' restorer, and returns (status, output, lines of errors)."""
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((50, 60, 3), 150, np.uint8)).save(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_restorer", lambda *_, **__: restorer)
    monkeypatch.setattr("difflid_jax.restore.use_compilation_cache", lambda: None)

    def run(*arguments):
        values = flags.FlagValues()
        restore.define_flags(values)
        monkeypatch.setattr(flags, "FLAGS", values)
        status, (output, errors) = restore.main(values(["restore", *arguments])), capsys.readouterr()
        # Among the steps of the progress bar.
        return status, output, [line for line in re.split("[\r\n]", errors) if line.startswith("restore:")]

    return run


def test_photographs_are_restored_and_failures_give_status_1(program, restorer, tmp_path):
    hazy = read_photo(tmp_path / "in" / "a.png").pixels
    status, output, errors = program("in", "--compare")
    assert (status, errors) == (0, []) and output.startswith("restored: 1 photograph restored in")
    np.testing.assert_array_equal(
        read_photo(tmp_path / "restored" / "a.png").pixels, restorer.restore_pixels(hazy)
    )
    assert (tmp_path / "restored" / "a.compare.png").exists()
    (tmp_path / "in" / "b.jpg").write_text("not an image")
    (tmp_path / "in" / "notes.txt").touch()
    status, output, errors = program("in", "--output=in/half", "--strength=0.5")
    assert status == 1 and output.startswith("in/half: 1 photograph restored")
    first, second, last = errors
    assert first == "restore: in: left out 1 .txt (not JPEG, PNG, WebP, TIFF or BMP)"
    assert second.startswith("restore: in/b.jpg: not an image")
    assert last == "restore: 1 of 2 could not be restored"
    half = read_photo(tmp_path / "in" / "half" / "a.png").pixels
    np.testing.assert_allclose(half, (hazy + 0.0 + restorer.restore_pixels(hazy)) / 2, atol=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give photographs"),
        (("in", "--output="), "--output"),
        (("in", "--output=in"), "is an input"),
        (("in", "--output=out", "--tile=9"), "tile"),
        (("in", "--output=out", "--strength=2"), "strength"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(program, tmp_path, arguments, message):
    with pytest.raises((UsageError, ValueError), match=message):
        program(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_help_does_not_wait_for_jax():
    code = "import sys, difflid_jax.restore; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
