"""Images with depth: the same from folders and tars, in RESIDE's frame and with RESIDE's haze."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize_scalar

from difflid_jax.data.files import File, find_files
from difflid_jax.data.haze import scatter
from difflid_jax.data.rgbd import Frame, depth_size, find_scenes, has_depth, parse_ids, read_depth
from difflid_jax.images.files import read_image

WHOLE = Frame(mirrored=False, crop=None, first_id=0)


@pytest.fixture
def scenes(tmp_path):
    """Twelve scenes, numbered 0…11, in a folder."""
    rng = np.random.default_rng(0)
    for part in ("rgb", "depth"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for i in range(12):
        _save(tmp_path / "set" / "rgb" / f"{i}.png", rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        _save(tmp_path / "set" / "depth" / f"{i}.png", rng.integers(1, 256, (12, 16), dtype=np.uint8))
    return tmp_path / "set"


def _save(path, array):
    Image.fromarray(array).save(path)


def _tar(folder: Path) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*.png")):
            tar.add(file, f"./{file.relative_to(folder)}")
    return path


def test_folder_and_tar_give_the_same_in_the_order_of_the_numbers(scenes):
    from_folder, from_tar = find_scenes(scenes), find_scenes(_tar(scenes))
    assert [s.name for s in from_folder] == [s.name for s in from_tar] == [str(i) for i in range(1, 13)]
    for a, b in zip(from_folder, from_tar, strict=True):
        np.testing.assert_array_equal(a.rgb.image(), b.rgb.image())
        np.testing.assert_array_equal(a.rgb.image(), np.asarray(Image.open(io.BytesIO(a.rgb.bytes()))))
        np.testing.assert_array_equal(read_depth(a.depth, WHOLE), read_depth(b.depth, WHOLE))
        assert a.rgb.header() == b.rgb.header()
    assert has_depth(scenes) and has_depth(_tar(scenes)) and not has_depth(scenes / "rgb")


def test_ids_count_from_one_where_files_count_from_zero(scenes):
    assert [s.rgb.stem for s in find_scenes(scenes, (3, 5))] == ["2", "3", "4"]
    assert [s.rgb.stem for s in find_scenes(scenes, (3, 3), first_id=0)] == ["3"]


def test_bad_ids_are_named(scenes):
    assert parse_ids("5-20") == (5, 20) and parse_ids("7") == (7, 7) and parse_ids("") == ()
    with pytest.raises(ValueError, match=r"8 of the 16 ids 5-20 do not exist, first 13 \(found: 1-12\)"):
        find_scenes(scenes, (5, 20))
    for text in ("5-3", "a", "1+2"):
        with pytest.raises(ValueError, match="must look like"):
            parse_ids(text)


def test_a_missing_partner_is_named(scenes):
    (scenes / "depth" / "7.png").unlink()
    for root in (scenes, _tar(scenes)):
        with pytest.raises(ValueError, match=r"1 images without a partner .* first '7'"):
            find_scenes(root)


def test_what_is_no_set_of_scenes(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_scenes(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected rgb/ and depth/ with images, found 0 and 0"):
        find_scenes(tmp_path / "empty")
    (tmp_path / "broken.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="not a readable uncompressed tar"):
        find_scenes(tmp_path / "broken.tar")
    (tmp_path / "file.txt").touch()
    with pytest.raises(ValueError, match=r"expected a folder or an uncompressed \.tar"):
        find_files(tmp_path / "file.txt")


def test_a_tar_cut_off_is_refused(scenes):
    path = _tar(scenes)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 700])
    with pytest.raises(ValueError, match=r"truncated|not a readable|partner"):
        find_scenes(path)


def test_the_frame_mirrors_then_crops(scenes):
    frame = Frame(mirrored=True, crop=(2, 10, 1, 9))
    image = find_scenes(scenes)[0].rgb.image()
    np.testing.assert_array_equal(frame.apply(image), image[:, ::-1][2:10, 1:9])
    assert frame.size(12, 16, "") == (8, 8) and WHOLE.size(12, 16, "") == (12, 16)
    with pytest.raises(ValueError, match=r"scene: 12×16 .* rows 10:470 and columns 10:630"):
        Frame().size(12, 16, "scene")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_depth_is_relative_to_the_farthest_point_of_the_frame(tmp_path, dtype):
    depth = np.full((40, 40), 100, dtype)
    depth[:, 20:] = 150
    depth[0, 0] = 200  # outside the frame
    _save(tmp_path / "d.png", depth)
    found = read_depth(File(tmp_path / "d.png"), Frame(mirrored=True, crop=(5, 40, 0, 40)))
    assert found.dtype == np.uint16 and found.shape == (35, 40) and found.max() == 65535
    tolerance = 0.5 / 150 if dtype == np.uint8 else 1e-5  # eight bits are smoothed by up to half a step
    np.testing.assert_allclose(found[:, :20] / 65535, 1, atol=tolerance)
    np.testing.assert_allclose(found[:, 20:] / 65535, 100 / 150, atol=tolerance)
    assert depth_size(File(tmp_path / "d.png")) == (40, 40)


def test_steps_of_eight_bits_are_smoothed_within_their_rounding(tmp_path):
    ramp = np.broadcast_to(np.linspace(100, 110, 200), (20, 200))
    _save(tmp_path / "d.png", np.rint(ramp).astype(np.uint8))
    found = read_depth(File(tmp_path / "d.png"), WHOLE) / 65535
    found *= 110 / found.max()
    assert np.abs(found - np.rint(ramp)).max() <= 0.51
    error, before = np.abs(found - ramp).mean(), np.abs(np.rint(ramp) - ramp).mean()
    assert error < 0.8 * before
    assert np.abs(np.diff(found, axis=1)).max() < 0.5  # the steps were 1


@pytest.mark.parametrize("wrong", ["colour", "holes", "damaged", "empty"])
def test_bad_depth_is_named(tmp_path, wrong):
    path = tmp_path / "d.png"
    depth = np.full((40, 40), 100, np.uint8)
    if wrong == "colour":
        depth = np.stack([depth] * 3, -1)
    elif wrong == "holes":
        depth[:2] = 0
    _save(path, depth)
    if wrong == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    elif wrong == "empty":
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"d\.png"):
        read_depth(File(path), WHOLE)


def test_haze_from_nyu_depth_is_reside_s(shared):
    """Four files of ITS, their β fitted: over 55.7 dB, where the steps of 8 bits reach 54.6."""
    sample = shared / "data" / "its_sample"
    for scene in find_scenes(shared / "data" / "nyu_v2_labelled_train.tar", (1, 2)):
        depth = read_depth(scene.depth, Frame()) / np.float32(65535)
        clean = read_image(sample / "gt" / f"{scene.name}.png")
        assert np.abs(Frame().apply(scene.rgb.image()).astype(int) - clean).mean() < 3  # JPEG against PNG
        for file in (sample / "hazy").glob(f"{scene.name}_*.png"):
            hazy, airlight = read_image(file), float(file.stem.split("_")[2])

            def error(beta, hazy=hazy, airlight=airlight, clean=clean, depth=depth):
                made = scatter(clean / np.float32(255), np.exp(np.float32(-beta) * depth), airlight)
                return np.mean((np.rint(255 * made) - hazy) ** 2)

            best = minimize_scalar(error, bounds=(0.8, 1.3), method="bounded", options={"xatol": 1e-3})
            assert 10 * np.log10(255**2 / best.fun) > 55.7, file.name
