"""Every source gives the same kind of data set, with and without a cache, and names what is wrong."""

import time

import numpy as np
import pytest
from PIL import Image

from difflid_jax.data import rgbd
from difflid_jax.data.builders import build
from difflid_jax.data.pairing.pairs import find_pairs, load_pair
from difflid_jax.data.photographs import photographs
from difflid_jax.data.pipeline import Batches, CropSpec, Evaluation
from difflid_jax.data.rgbd import Frame
from difflid_jax.data.sources import hold_out, open_data

FRAME = Frame(mirrored=True, crop=(1, 23, 2, 30))


@pytest.fixture(autouse=True)
def small_frame(monkeypatch):
    """The frame of NYU in miniature."""
    monkeypatch.setattr(rgbd, "FRAMES", {**rgbd.FRAMES, "nyu_mirrored": FRAME})


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _noise(seed, *shape):
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@pytest.fixture
def sots(tmp_path):
    """Two scenes of three haze levels, the clean images with SOTS's border of 10 px."""
    for scene in (1400, 1401):
        _save(tmp_path / "sots" / "gt" / f"{scene}.png", _noise(scene, 44, 52, 3))
        for level in (1, 2, 3):
            _save(tmp_path / "sots" / "hazy" / f"{scene}_{level}.png", _noise(scene + level, 24, 32, 3))
    return tmp_path / "sots"


@pytest.fixture
def nyu(tmp_path):
    for i in range(4):
        _save(tmp_path / "nyu" / "rgb" / f"{i}.png", _noise(i, 24, 32, 3))
        _save(tmp_path / "nyu" / "depth" / f"{i}.png", _noise(i + 50, 24, 32))
    return tmp_path / "nyu"


def _open(source, root, tmp_path, cached=True, **options):
    return open_data(
        source, str(root), cache=tmp_path / "cache" if cached else None, progress=False, **options
    )


@pytest.mark.parametrize("cached", [False, True])
def test_folders_give_the_pairs_of_find_pairs(sots, tmp_path, cached):
    data = _open("folders", sots, tmp_path, cached, dataset="sots_indoor")
    pairs, _ = find_pairs(sots, "sots_indoor", progress=False)
    assert data.kind == "pairs" and len(data) == 6 and len(data.store) == 8  # each clean image once
    assert data.names == tuple(pair.name for pair in pairs) and data.report.pair_count == 6
    for pair, image in zip(pairs, Evaluation(data), strict=True):
        hazy, clean = load_pair(pair)
        np.testing.assert_array_equal(image["hazy"], hazy)
        np.testing.assert_array_equal(image["clean"], clean)


def test_the_cache_gives_ten_times_the_crops_of_png_files(tmp_path):
    (_, photograph, _), *_ = photographs("test")
    for folder in ("hazy", "gt"):
        _save(tmp_path / "pairs" / folder / "a.png", photograph[:460, :620])
    seconds = {}
    for cached, count in ((False, 1), (True, 20)):
        batches = Batches(_open("folders", tmp_path / "pairs", tmp_path, cached), CropSpec(128), 4)
        batches.make(0)
        start = time.thread_time()
        for number in range(1, 1 + count):
            batches.make(number)
        seconds[cached] = (time.thread_time() - start) / count
    assert seconds[False] > 10 * seconds[True], seconds


def test_a_tfds_build_is_the_same_data_set(sots, tmp_path):
    build(sots, "sots_indoor", tmp_path / "tfds")
    built = _open("tfds", tmp_path / "tfds", tmp_path, dataset="sots_indoor")
    folders = _open("folders", sots, tmp_path, dataset="sots_indoor")
    assert built.names == folders.names and len(built.store) == 8
    for a, b in zip(Evaluation(built), Evaluation(folders), strict=True):
        np.testing.assert_array_equal(a["hazy"], b["hazy"])
        np.testing.assert_array_equal(a["clean"], b["clean"])
    first, second = (next(Batches(data, CropSpec(16), 4)) for data in (built, folders))
    np.testing.assert_array_equal(first["hazy"], second["hazy"])


@pytest.mark.parametrize("cached", [False, True])
def test_rgbd_gives_framed_images_of_the_wanted_ids(nyu, tmp_path, cached):
    data = _open("rgbd", nyu, tmp_path, cached, ids=(2, 3))
    assert data.kind == "depth" and data.names == ("2", "3")
    for i, image in enumerate(Evaluation(data)):
        np.testing.assert_array_equal(image["clean"], _noise(i + 1, 24, 32, 3)[:, ::-1][1:23, 2:30])
        assert image["hazy"].shape == (22, 28, 3)


def test_roots_are_joined_and_one_named_twice_counts_twice_but_is_held_once(nyu, tmp_path):
    data = _open("rgbd", f"{nyu}, {nyu}", tmp_path, ids=(1, 2))
    assert data.names == ("1", "2", "1", "2") and len(data.store) == 4
    np.testing.assert_array_equal(data.elements[:2], data.elements[2:])


def test_photographs_of_a_folder_get_plausible_depth(tmp_path):
    for i in range(2):
        _save(tmp_path / "photos" / f"{i}.png", _noise(i, 40, 50, 3))
    data = _open("photographs", tmp_path / "photos", tmp_path)
    again = _open("photographs", tmp_path / "photos", tmp_path, cached=False)
    for a, b in zip(Evaluation(data), Evaluation(again), strict=True):
        np.testing.assert_array_equal(a["hazy"], b["hazy"])
        assert np.abs(a["hazy"].astype(int) - a["clean"]).mean() > 5
    depth = data.store.read(data.elements[0, 1])
    assert depth.dtype == np.uint16 and depth.shape == (40, 50) and depth.max() == 65535


def test_photographs_and_measured_depth_mix(nyu, tmp_path):
    _save(tmp_path / "photos" / "a.png", _noise(9, 40, 50, 3))
    data = _open("photographs", f"{nyu},{tmp_path / 'photos'}", tmp_path, ids=(1, 3))
    assert data.names == ("1", "2", "3", "a") and data.kind == "depth"


def test_photographs_of_installed_packages(tmp_path):
    data = _open("photographs", "", tmp_path, split="test")
    assert not (tmp_path / "cache").exists()  # they are in memory
    for (name, clean, depth), image in zip(photographs("test"), Evaluation(data), strict=True):
        assert image["name"] == name
        np.testing.assert_array_equal(image["clean"], clean)
        assert image["hazy"].shape == (*depth.shape, 3)


def test_images_are_found_in_folders_and_sets_with_depth(nyu, tmp_path):
    _save(tmp_path / "photos" / "deep" / "down" / "a.jpg", _noise(1, 30, 30, 3))
    Image.fromarray(_noise(2, 28, 36)).save(tmp_path / "photos" / "grey.png")
    (tmp_path / "photos" / "readme.txt").touch()
    _save(tmp_path / "photos" / ".thumbnails" / "b.jpg", _noise(1, 30, 30, 3))
    data = _open("images", f"{tmp_path / 'photos'},{nyu}", tmp_path, ids=(2, 4))
    assert data.kind == "images" and len(data) == 5
    np.testing.assert_array_equal(data.store.read(4), _noise(3, 24, 32, 3)[:, ::-1][1:23, 2:30])
    assert next(Batches(data, CropSpec(16), 4))["image"].shape == (4, 16, 16, 3)


def test_the_fingerprint_does_not_depend_on_the_cache_or_the_place(nyu, tmp_path):
    cached = _open("rgbd", nyu, tmp_path).fingerprint
    assert cached == _open("rgbd", nyu, tmp_path, False).fingerprint
    assert cached != _open("rgbd", nyu, tmp_path, frame="whole").fingerprint
    moved = nyu.rename(tmp_path / "moved")
    assert cached == _open("rgbd", moved, tmp_path).fingerprint


def test_bad_roots_are_named(nyu, sots, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, root, error, message in [
        ("rgbd", tmp_path / "nothing", FileNotFoundError, "nothing"),
        ("rgbd", sots, ValueError, "expected rgb/ and depth/"),
        ("rgbd", f"{nyu},{tmp_path}\\\\set", FileNotFoundError, "a backslash is part of a name"),
        ("images", tmp_path / "nothing", FileNotFoundError, "nothing"),
        ("images", tmp_path / "empty", ValueError, "no images found"),
        ("photographs", tmp_path / "empty", ValueError, "no images found"),
        ("folders", "", ValueError, "needs the path"),
        ("tfds", tmp_path / "empty", ValueError, "no TFDS build"),
        ("disk", nyu, ValueError, "source of images: expected one of folders, tfds"),
    ]:
        with pytest.raises(error, match=message):
            _open(source, root, tmp_path, dataset="sots_indoor")
    for source, root, message in [
        ("rgbd", nyu, "1 of the 2 ids 4-5 do not exist, first 5"),
        ("photographs", sots, "ids select images with depth, but nothing here"),
        ("images", sots, "ids select images with depth, but nothing here"),
        ("photographs", "", "which this source does not have"),
        ("folders", sots, "which this source does not have"),
    ]:
        with pytest.raises(ValueError, match=message):
            _open(source, root, tmp_path, dataset="sots_indoor", ids=(4, 5))
    assert not (tmp_path / "cache").exists()


def test_depth_of_another_size_is_refused(nyu, tmp_path):
    _save(nyu / "depth" / "3.png", _noise(1, 20, 32))
    with pytest.raises(ValueError, match=r"rgb/3\.png is \(24, 32\).*depth/3\.png is \(20, 32\)"):
        _open("rgbd", nyu, tmp_path, frame="whole")


def test_images_are_used_whole_under_the_number_of_their_file(nyu, tmp_path):
    data = _open("rgbd", nyu, tmp_path, frame="whole", ids=(0, 1))
    assert data.names == ("0", "1") and len(data.store) == 4
    np.testing.assert_array_equal(data.store.read(data.elements[0, 0]), _noise(0, 24, 32, 3))


def test_a_path_may_contain_a_comma_or_the_home_folder(nyu, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    nyu.rename(tmp_path / "a,b")
    assert len(_open("rgbd", "~/a,b", tmp_path)) == 4
    (tmp_path / "a,b").rename(tmp_path / "c")
    assert len(_open("images", f"{tmp_path / 'c'},~/c", tmp_path)) == 8


def test_a_frame_larger_than_the_images_is_refused(nyu, tmp_path, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"rgb/0\.png: 24×32 .* smaller than the frame .* 'whole'"):
        _open("rgbd", nyu, tmp_path)


def test_an_incomplete_set_is_refused_unless_it_is_allowed(sots, tmp_path):
    (sots / "hazy" / "1401_3.png").unlink()
    with pytest.raises(ValueError, match="1401_3"):
        _open("folders", sots, tmp_path, dataset="sots_indoor")
    assert len(_open("folders", sots, tmp_path, dataset="sots_indoor", allow_missing=True)) == 5


def test_held_out_elements_are_drawn_by_the_seed_and_not_trained_on(sots):
    data = open_data("folders", sots, dataset="sots_indoor")
    rest, held = hold_out(data, 1, seed=3)
    assert len(held) == 1 and {*rest.names, *held.names} == {*data.names}
    assert not {*rest.names} & {*held.names}
    assert len({data.fingerprint, rest.fingerprint, held.fingerprint}) == 3
    assert hold_out(data, 1, seed=3)[1].fingerprint == held.fingerprint
    with pytest.raises(ValueError, match="cannot be held out of"):
        hold_out(data, len(data), seed=0)
