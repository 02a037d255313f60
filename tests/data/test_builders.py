"""TFDS builds hold the same pairs and pixels as the folders, and import no TensorFlow."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from difflid_jax.data import builders
from difflid_jax.data.pairing.pairs import find_pairs, load_pair
from difflid_jax.images.files import write_png


def photo(seed, height=20, width=24):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def sots(tmp_path_factory):
    """Two scenes: one with a border to cut off its ground truth, one with a grey JPEG among its files."""
    root = tmp_path_factory.mktemp("indoor")
    for role in ("hazy", "gt"):
        (root / role).mkdir()
    for level in (1, 2, 10):
        write_png(root / "hazy" / f"1400_{level}.png", photo(level))
        Image.fromarray(photo(level + 50, 30, 40)).save(root / "hazy" / f"1401_{level}.jpg", quality=80)
    Image.fromarray(photo(9, 30, 40)[..., 0]).save(root / "hazy" / "1401_2.jpg", quality=80)
    write_png(root / "gt" / "1400.png", photo(100, 40, 44))
    write_png(root / "gt" / "1401.png", photo(101, 30, 40))
    return root


@pytest.fixture(scope="module")
def built(sots, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    builders.build(sots, "sots_indoor", data_dir)
    return data_dir


def test_both_sources_give_the_same_pairs_and_pixels_in_the_same_order(sots, built):
    pairs, _ = find_pairs(sots, "sots_indoor")
    found = builders.find_built(built, "sots_indoor", "test")
    assert [name for name, _, _ in found] == [pair.name for pair in pairs]
    for pair, (_, hazy, clean) in zip(pairs, found, strict=True):
        for expected, item in zip(load_pair(pair), (hazy, clean), strict=True):
            assert item.shape() == expected.shape
            np.testing.assert_array_equal(item.load(), expected)


def test_what_tfds_itself_decodes_is_the_same_too(sots, built):
    source = builders.tfds.builder("dehazing_pairs/sots_indoor", data_dir=built).as_data_source("test")
    pairs, _ = find_pairs(sots, "sots_indoor")
    assert len(source) == len(pairs) == 6
    for pair, example in zip(pairs, source, strict=True):
        hazy, clean = load_pair(pair)
        np.testing.assert_array_equal(np.broadcast_to(example["hazy"], hazy.shape), hazy)
        np.testing.assert_array_equal(example["clean"], clean)
        assert example["name"].decode() == pair.name


def test_images_keep_the_bytes_of_their_files_where_they_can(sots, built):
    source = builders._source(built / "dehazing_pairs" / "sots_indoor" / "1.0.0", "test")
    assert source[0]["hazy"] == (sots / "hazy" / "1400_1.png").read_bytes()
    assert source[3]["hazy"] == (sots / "hazy" / "1401_1.jpg").read_bytes()
    assert source[3]["clean"] == (sots / "gt" / "1401.png").read_bytes()
    assert source[0]["clean"][:4] == b"\x89PNG" != (sots / "gt" / "1400.png").read_bytes()


def test_a_shared_clean_image_is_one_and_images_travel_between_processes(built):
    found = builders.find_built(built / "dehazing_pairs", "sots_indoor")
    assert len({clean for _, _, clean in found}) == 2 and len({hazy for _, hazy, _ in found}) == 6
    hazy = pickle.loads(pickle.dumps(found[0][1]))
    assert hazy == found[0][1] and hazy.key == found[0][1].key


def test_real_pairs_survive(shared, tmp_path):
    root = shared / "data" / "its_sample"
    builders.build(root, "its", tmp_path)
    for pair, (_, hazy, clean) in zip(
        find_pairs(root, "its")[0], builders.find_built(tmp_path, "its"), strict=True
    ):
        for expected, item in zip(load_pair(pair), (hazy, clean), strict=True):
            np.testing.assert_array_equal(item.load(), expected)


def test_sets_with_splits_have_them(tmp_path):
    for part in ("our485", "eval15"):
        for role in ("low", "high"):
            (tmp_path / "LOL" / part / role).mkdir(parents=True)
            write_png(tmp_path / "LOL" / part / role / "1.png", photo(len(part + role)))
    builders.build(tmp_path / "LOL", "lol_v1", tmp_path / "tfds")
    for split, part in (("train", "our485"), ("test", "eval15")):
        ((name, hazy, _),) = builders.find_built(tmp_path / "tfds", "lol_v1", split)
        assert name == "1"
        np.testing.assert_array_equal(hazy.load(), photo(len(part + "low")))
    with pytest.raises(ValueError, match="no split None; it has: train, test"):
        builders.find_built(tmp_path / "tfds", "lol_v1")


def test_a_partial_set_is_refused_unless_allowed_and_leaves_nothing(sots, tmp_path):
    for role in ("hazy", "gt"):
        (tmp_path / "set" / role).mkdir(parents=True)
    write_png(tmp_path / "set" / "hazy" / "1400_1.png", photo(1))
    write_png(tmp_path / "set" / "hazy" / "1401_1.png", photo(2))
    write_png(tmp_path / "set" / "gt" / "1400.png", photo(3))
    with pytest.raises(ValueError, match=r"1401_1\.png has no clean “1401”"):
        builders.build(tmp_path / "set", "sots_indoor", tmp_path / "tfds")
    with pytest.raises(ValueError, match="no TFDS build of sots_indoor"):
        builders.find_built(tmp_path / "tfds", "sots_indoor")
    builders.build(tmp_path / "set", "sots_indoor", tmp_path / "tfds", allow_missing=True)
    assert [name for name, _, _ in builders.find_built(tmp_path / "tfds", "sots_indoor")] == ["1400_1"]
    builders.build(tmp_path / "set", "sots_indoor", tmp_path / "tfds")  # the same files: kept
    with pytest.raises(ValueError, match="holds a build of other files; remove it"):
        builders.build(sots, "sots_indoor", tmp_path / "tfds")


def test_refusals_name_what_is_missing(tmp_path, built):
    with pytest.raises(FileNotFoundError):
        builders.build(tmp_path / "absent", "its", tmp_path)
    with pytest.raises(FileNotFoundError):
        builders.find_built(tmp_path / "absent", "its")
    with pytest.raises(
        ValueError, match=r"no TFDS build of its .*make it with python -m difflid_jax.check_data"
    ):
        builders.find_built(built, "its")
    with pytest.raises(ValueError, match="holds sots_indoor, expected its"):
        builders.find_built(built / "dehazing_pairs" / "sots_indoor" / "1.0.0", "its")


def test_no_tensorflow_and_no_network(sots, tmp_path):
    program = f"""
import socket, sys
def refuse(*a, **k): raise RuntimeError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from difflid_jax.data.builders import build, find_built
build({str(sots)!r}, "sots_indoor", {str(tmp_path)!r})
assert find_built({str(tmp_path)!r}, "sots_indoor")[0][1].load().shape == (20, 24, 3)
assert "tensorflow" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
