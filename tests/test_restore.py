import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.cli import UsageError
from difflid_jax.images.photos import read_photo
from difflid_jax.restore import left_out, plan, restore_photographs

RNG = np.random.default_rng(0)


def photograph(path, height=50, width=60, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = RNG.integers(60, 200, (height // 10, width // 10, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


def restored(restorer, arguments, output, **options):
    lines = []
    compare = options.pop("compare", False)
    jobs = plan([str(a) for a in arguments], output, compare=compare)
    failed = restore_photographs(jobs, restorer, report=lines.append, **options)
    assert failed == len(lines)
    return lines


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_and_folders_of_every_kind_are_restored(restorer, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    inputs = tmp_path / "in"
    photograph(inputs / "a.jpg", exif=exif)
    photograph(inputs / "b.PNG")
    photograph(inputs / "c.webp", lossless=True)
    deep = RNG.integers(20_000, 40_000, (50, 60), dtype=np.uint16)
    Image.fromarray(deep).save(inputs / "d.tiff")
    (inputs / "notes.txt").write_text("not to be looked at")
    photograph(inputs / "deeper" / "e.jpg")
    alone = photograph(tmp_path / "f.jpeg")
    before = content(tmp_path)
    assert restored(restorer, [inputs, alone], tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jpg", "b.PNG", "c.webp", "d.tiff", "f.jpeg"
    ]  # fmt: skip
    assert {name: data for name, data in content(tmp_path).items() if name.parts[0] != "out"} == before
    for name in ("a.jpg", "c.webp", "d.tiff"):
        old, new = read_photo(inputs / name), read_photo(tmp_path / "out" / name)
        assert (new.pixels.shape, new.pixels.dtype, new.format) == (
            old.pixels.shape,
            old.pixels.dtype,
            old.format,
        )
        assert np.abs(new.pixels.astype(int) - old.pixels).mean() > 0.01 * np.iinfo(old.pixels.dtype).max
    assert new.pixels.dtype == np.uint16
    with Image.open(tmp_path / "out" / "a.jpg") as picture:
        assert picture.size == (50, 60)
        assert picture.getexif()[0x010F] == "Camera"
    # Lossless: just what the restorer gives.
    expected = restorer.restore_pixels(read_photo(inputs / "c.webp").pixels)
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "c.webp").pixels, expected)


def test_bad_files_are_named_and_the_rest_goes_on(restorer, tmp_path):
    good = photograph(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "half.jpg").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "in" / "text.png").write_text("hazy")
    before = content(tmp_path)
    lines = restored(restorer, [tmp_path / "in", tmp_path / "gone.jpg"], tmp_path / "out", max_pixels=10**6)
    assert [Path(line.split(":")[0]).name for line in lines] == [
        "empty.jpg", "half.jpg", "text.png", "gone.jpg"
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.jpg"]
    assert {name: data for name, data in content(tmp_path).items() if name.parts[0] != "out"} == before
    (line,) = restored(restorer, [good], tmp_path / "small", max_pixels=100)
    assert "more than the limit" in line
    assert not (tmp_path / "small").exists()


def test_what_a_folder_holds_besides_photographs_is_counted(tmp_path):
    photograph(tmp_path / "in" / "good.jpg")
    for name in ("a.HEIC", "b.heic", "c.bmp", ".hidden", "notes"):
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "deeper").mkdir()
    (line,) = left_out([str(tmp_path / "in"), str(tmp_path / "in" / "good.jpg")])
    assert line.startswith(str(tmp_path / "in")) and line.endswith("1 .bmp, 2 .heic, 1 no suffix")


def test_outputs_are_replaced_only_when_told(restorer, tmp_path):
    source, output = photograph(tmp_path / "a.png"), tmp_path / "out"
    assert restored(restorer, [source], output) == []
    first = (output / "a.png").read_bytes()
    (line,) = restored(restorer, [source], output, strength=0.5)
    assert "--overwrite" in line and "\n" not in line
    assert (output / "a.png").read_bytes() == first
    assert restored(restorer, [source], output, strength=0.5, overwrite=True) == []
    assert (output / "a.png").read_bytes() != first


def test_compare_writes_a_sheet(restorer, tmp_path):
    source = photograph(tmp_path / "a.png", 40, 60)
    assert restored(restorer, [source], tmp_path / "out", compare=True) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.compare.png", "a.png"]
    with Image.open(tmp_path / "out" / "a.compare.png") as sheet:
        assert sheet.width > 120 and sheet.height > 40


def test_sheets_of_one_stem_are_told_apart(tmp_path):
    photos = [photograph(tmp_path / "in" / name) for name in ("a.jpg", "A.png", "b.jpg")]
    jobs = plan([str(photo) for photo in photos], tmp_path / "out", compare=True)
    names = [job.sheet.name for job in jobs]
    assert names == ["a.jpg.compare.png", "A.png.compare.png", "b.compare.png"]


def test_a_full_disk_leaves_no_half_file(restorer, tmp_path, monkeypatch):
    source = photograph(tmp_path / "a.png")
    write = Path.write_bytes

    def fill_up(path, data):
        write(path, data[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    (line,) = restored(restorer, [source], tmp_path / "out")
    assert "No space left" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_what_would_harm_inputs_is_refused_before_anything_is_done(tmp_path):
    folder = tmp_path / "in"
    photo = photograph(folder / "a.png")
    other = photograph(tmp_path / "other" / "A.png")
    link = tmp_path / "linked"
    link.symlink_to(folder)
    (tmp_path / "hard").mkdir()
    os.link(photo, tmp_path / "hard" / "a.png")
    (tmp_path / "empty").mkdir()
    for arguments, output, message in (
        ([folder], folder, "lies in"),
        ([folder], folder / "out", "lies in"),
        ([folder], link / "out", "lies in"),
        ([photo], folder, "is an input"),
        ([photo], link, "is an input"),
        ([photo], tmp_path / "hard", "is an input"),
        ([photo, other], tmp_path / "out", "would both become"),
        ([photo], photo, "found a file"),
        ([tmp_path / "empty"], tmp_path / "out", "no photograph in it"),
    ):
        with pytest.raises(UsageError, match=message):
            plan([str(a) for a in arguments], output)
    sheet = photograph(tmp_path / "in" / "a.compare.png")
    with pytest.raises(UsageError, match="would both become"):
        plan([str(sheet), str(photo)], tmp_path / "out", compare=True)


def test_the_program(restorer_folder, tmp_path):
    photograph(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "b.jpg").write_text("no picture")
    command = [sys.executable, "-m", "difflid_jax.restore", str(tmp_path / "in")]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def program(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)

    done = program(f"--output={tmp_path / 'out'}", f"--weights={restorer_folder}")
    assert done.returncode == 1
    assert "1 photograph restored" in done.stdout
    assert "b.jpg: no picture" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]
    assert any((tmp_path / "cache" / "difflid_jax").iterdir())
    for arguments in (
        (),
        ("--output=x", "--tile=9"),
        ("--output=x", "--strength=2"),
        ("--output=x", "--weights=no"),
    ):
        refused = program(*arguments)
        assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
