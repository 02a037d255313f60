"""Which files are restored to where; one failure does not stop the others; nothing is lost."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.cli import UsageError
from difflid_jax.images.photos import read_photo
from difflid_jax.restoration.batch import left_out, plan, restore_photographs

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("as_at_run_time")  # the Inverter is no Restorer


class Inverter:
    """Takes the place of a restorer; images that begin with black come out not finite."""

    def restore_pixels(self, pixels, strength=1.0, on_tile=None):
        on_tile(1, 1)
        if not pixels[0, 0].any():
            raise ValueError("the restored image is not finite")
        top = np.iinfo(pixels.dtype).max
        return np.rint(pixels + strength * (top - 2.0 * pixels)).astype(pixels.dtype)


@pytest.fixture
def restorer():
    return Inverter()


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
    photograph(inputs / "g.bmp")
    photograph(inputs / "h.jfif", format="JPEG")
    deep = RNG.integers(20_000, 40_000, (50, 60), dtype=np.uint16)
    Image.fromarray(deep).save(inputs / "d.tiff")
    (inputs / "notes.txt").write_text("not an image")
    photograph(inputs / "deeper" / "e.jpg")
    alone = photograph(tmp_path / "f.jpeg")
    before = content(tmp_path)
    assert restored(restorer, [inputs, alone], tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jpg", "b.PNG", "c.webp", "d.tiff", "f.jpeg", "g.bmp", "h.jfif"
    ]  # fmt: skip
    assert {name: data for name, data in content(tmp_path).items() if name.parts[0] != "out"} == before
    for name in ("a.jpg", "c.webp", "g.bmp", "h.jfif", "d.tiff"):
        old, new = read_photo(inputs / name), read_photo(tmp_path / "out" / name)
        assert (new.pixels.shape, new.pixels.dtype, new.format) == (
            old.pixels.shape,
            old.pixels.dtype,
            old.format,
        )
        assert np.abs(new.pixels.astype(int) - old.pixels).mean() > 0.01 * np.iinfo(old.pixels.dtype).max
    assert new.pixels.dtype == np.uint16
    # Lossless: exactly what the restorer returns.
    np.testing.assert_array_equal(
        read_photo(tmp_path / "out" / "c.webp").pixels, 255 - read_photo(inputs / "c.webp").pixels
    )
    # Three at a time, the same files, and failures in the order of the inputs.
    (inputs / "b.PNG").write_bytes(b"")
    (inputs / "d.tiff").write_bytes(b"")
    lines = restored(restorer, [inputs, alone], tmp_path / "three", at_once=3)
    assert ["b.PNG" in lines[0], "d.tiff" in lines[1], len(lines)] == [True, True, 2]
    ones = {name: data for name, data in content(tmp_path / "out").items() if name.stem not in "bd"}
    assert content(tmp_path / "three") == ones


def test_bad_files_are_named_and_the_rest_goes_on(restorer, tmp_path):
    good = photograph(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "half.jpg").write_bytes(good.read_bytes()[:-200])
    (tmp_path / "in" / "text.png").write_text("hazy")
    Image.new("RGB", (60, 50)).save(tmp_path / "in" / "nan.jpg")
    before = content(tmp_path)
    lines = restored(restorer, [tmp_path / "in", tmp_path / "gone.jpg"], tmp_path / "out", max_pixels=10**6)
    assert [Path(line.split(":")[0]).name for line in lines] == [
        "empty.jpg", "half.jpg", "nan.jpg", "text.png", "gone.jpg"
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.jpg"]
    assert {name: data for name, data in content(tmp_path).items() if name.parts[0] != "out"} == before
    assert "not finite" in lines[2]
    (line,) = restored(restorer, [good], tmp_path / "small", max_pixels=100)
    assert "more than the limit" in line
    assert not (tmp_path / "small").exists()


def test_other_files_of_a_folder_are_counted(tmp_path):
    photograph(tmp_path / "in" / "good.jpg")
    for name in ("a.HEIC", "b.heic", "c.nef", ".hidden", "notes"):
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "deeper").mkdir()
    (line,) = left_out([str(tmp_path / "in"), str(tmp_path / "in" / "good.jpg")])
    assert line.startswith(str(tmp_path / "in"))
    assert line.endswith("2 .heic, 1 .nef, 1 no suffix (not JPEG, PNG, WebP, TIFF or BMP)")


def test_outputs_are_replaced_only_on_request(restorer, tmp_path):
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


def test_what_an_output_lacks_is_reported(restorer, tmp_path):
    segment = b"\xff\xe2\0\6MPF\0"
    source, lines = photograph(tmp_path / "a.jpg", extra=segment), []
    jobs = plan([str(source)], tmp_path / "out")
    assert restore_photographs(jobs, restorer, report=lines.append) == 0
    assert lines == [
        f"{tmp_path}/out/a.jpg: restored without its further images (gain map, depth or preview)"
    ]


def test_names_that_are_not_utf_8_are_restored_and_printable(restorer, tmp_path):
    names = [os.fsdecode(b"\xe9t\xe9.jpg"), os.fsdecode(b"\xff.jpg")]
    photograph(tmp_path / "in" / names[0])
    (tmp_path / "in" / names[1]).write_bytes(b"")
    (line,) = restored(restorer, [tmp_path / "in"], tmp_path / "out")
    line.encode()
    assert "?.jpg: the file is empty" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == [names[0]]


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
    composed, decomposed = (
        photograph(tmp_path / f / n) for f, n in (("c", "\xe9.png"), ("d", "e\u0301.png"))
    )
    link = tmp_path / "linked"
    link.symlink_to(folder)
    (tmp_path / "hard").mkdir()
    os.link(photo, tmp_path / "hard" / "a.png")
    (tmp_path / "empty").mkdir()
    for arguments, output, message in (
        ([folder], folder, "is an input"),
        ([photo], folder, "is an input"),
        ([photo], link, "is an input"),
        ([photo], tmp_path / "hard", "is an input"),
        ([photo, other], tmp_path / "out", "would both become"),
        ([composed, decomposed], tmp_path / "out", "would both become"),
        ([photo], photo, "found a file"),
        ([tmp_path / "empty"], tmp_path / "out", "no photographs found"),
    ):
        with pytest.raises(UsageError, match=message):
            plan([str(a) for a in arguments], output)
    sheet = photograph(tmp_path / "in" / "a.compare.png")
    with pytest.raises(UsageError, match="would both become"):
        plan([str(sheet), str(photo)], tmp_path / "out", compare=True)
