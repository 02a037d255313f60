"""The decoded cache gives the decoded pixels, even if it, its builders or its source change."""

import errno
import os
import pickle
import resource
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.data.cache import Undecoded, fingerprint, keys_of, open_cache
from difflid_jax.data.files import File
from difflid_jax.data.items import digest

SIZES = [(20, 31), (64, 48), (17, 17), (90, 5), (33, 64), (40, 40)]


@dataclass(frozen=True)
class Png:
    """A PNG file as an item that records its decodings."""

    file: Path
    decoded: list = field(default_factory=list, compare=False)
    recipe: str = ""
    dtype: str = "uint8"

    @property
    def name(self):
        return self.file.name

    @property
    def key(self):
        return digest(File(self.file).digest(), self.recipe, self.dtype)

    def shape(self):
        with Image.open(self.file) as image:
            return (image.height, image.width, 3)[: 2 if self.dtype == "uint16" else 3]

    def load(self):
        self.decoded.append(self.name)
        try:
            with Image.open(self.file) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{self.file}: {error}") from error
        return pixels.sum(-1, dtype=np.uint16) if self.dtype == "uint16" else pixels


@pytest.fixture
def folder(tmp_path):
    """Six images of different sizes."""
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(len(SIZES)):
        Image.fromarray(_pixels(i)).save(folder / f"{i}.png")
    return folder


def _pixels(i):
    return np.random.default_rng(i).integers(0, 256, (*SIZES[i], 3), dtype=np.uint8)


def _items(folder, **changes):
    decoded = []
    return [Png(file, decoded, **changes) for file in sorted(folder.glob("*.png"))], decoded


def _open_items(cache, items):
    return open_cache(cache, items, keys_of(items, progress=False), progress=False)


def _open(cache, folder, **changes):
    """The opened cache and the list of names that are decoded for it."""
    items, decoded = _items(folder, **changes)
    return _open_items(cache, items), decoded


def _fingerprint(items):
    return fingerprint(items, keys_of(items, progress=False))


def _assert_right(store):
    assert len(store) == len(SIZES)
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(store.read(i), _pixels(i))


def test_whole_arrays_and_windows_are_those_of_the_files(tmp_path, folder):
    cached, _ = _open(tmp_path / "cache", folder)
    undecoded = Undecoded(_items(folder)[0], progress=False)
    depth, _ = _open(tmp_path / "cache", folder, dtype="uint16")
    _assert_right(cached)
    _assert_right(undecoded)
    for i, (height, width) in enumerate(SIZES):
        window = (height // 3, width // 4, height // 2, width // 2)
        top, left, rows, columns = window
        expected = _pixels(i)[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(cached.window(i, *window), expected)
        np.testing.assert_array_equal(undecoded.window(i, *window), expected)
        np.testing.assert_array_equal(depth.window(i, *window), expected.sum(-1))
        assert cached.shape(i) == undecoded.shape(i) == (height, width, 3)
        np.testing.assert_array_equal(np.load(cached.path(i), mmap_mode="r"), _pixels(i))  # plain .npy
    assert not cached.window(1, 3, 5, 8, 8).flags.writeable


def test_decodes_once_and_shares_equal_images(tmp_path, folder):
    shutil.copy(folder / "3.png", folder / "9.png")
    _, decoded = _open(tmp_path / "cache", folder)
    assert len(decoded) == len(SIZES)
    again, decoded = _open(tmp_path / "cache", folder)
    np.testing.assert_array_equal(again.read(6), _pixels(3))
    assert decoded == []


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_a_changed_image_of_equal_size_and_time_is_another(tmp_path, folder, kind):
    """An uncompressed image keeps its length; a PNG is padded to it."""
    file = folder / "2.png"
    if kind == "bmp":
        Image.fromarray(_pixels(2)).save(file, "bmp")
    else:
        file.write_bytes(file.read_bytes() + bytes(200))
    before, times = _fingerprint(_items(folder)[0]), file.stat()
    _open(tmp_path / "cache", folder)
    Image.fromarray(255 - _pixels(2)).save(file, kind)
    file.write_bytes(file.read_bytes().ljust(times.st_size, b"\0"))
    assert file.stat().st_size == times.st_size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed, decoded = _open(tmp_path / "cache", folder)
    assert decoded == ["2.png"]
    np.testing.assert_array_equal(changed.read(2), 255 - _pixels(2))
    assert _fingerprint(_items(folder)[0]) != before


def test_the_fingerprint_follows_content_recipe_and_selection_and_not_the_place(tmp_path, folder):
    items, _ = _items(folder)
    whole = _fingerprint(items)
    assert len({whole, _fingerprint(items[:-1]), _fingerprint(_items(folder, recipe="crop")[0])}) == 3
    _open(tmp_path / "cache", folder)
    moved = folder.rename(tmp_path / "elsewhere")
    for file in moved.iterdir():
        file.touch()
    assert _fingerprint(_items(moved)[0]) == whole
    assert _open(tmp_path / "cache", moved)[1] == []
    assert len(_open(tmp_path / "cache", moved, recipe="crop")[1]) == len(SIZES)


def test_a_large_file_is_hashed_by_its_size_start_middle_and_end(tmp_path):
    content = bytearray(3 << 20)
    seen = set()
    for place in (None, 0, len(content) // 2, -1):
        if place is not None:
            content[place] ^= 1
        (tmp_path / "large").write_bytes(content)
        seen.add(File(tmp_path / "large").digest())
    (tmp_path / "large").write_bytes(content + b"\0")
    assert len(seen | {File(tmp_path / "large").digest()}) == 5


@pytest.mark.parametrize(
    "damage", ["first byte", "middle", "checksum", "truncated", "empty", "header", "gone"]
)
def test_a_damaged_entry_is_decoded_again(tmp_path, folder, damage):
    file = Path(_open(tmp_path / "cache", folder)[0].path(1))
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage in ("truncated", "empty"):
        file.write_bytes(data[: 5000 if damage == "truncated" else 0])
    else:
        data[{"first byte": 128, "middle": 5000, "checksum": -1, "header": 70}[damage]] ^= 1
        file.write_bytes(data)
    repaired, decoded = _open(tmp_path / "cache", folder)
    _assert_right(repaired)
    assert decoded == ["1.png"]
    _assert_right(_open(tmp_path / "cache", folder)[0])
    assert decoded == ["1.png"]


def test_an_interrupted_build_keeps_what_it_finished(tmp_path, folder):
    items, _ = _items(folder)

    class Interrupted(Png):
        def load(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _open_items(tmp_path / "cache", [*items[:-1], Interrupted(items[-1].file)])
    finished = len(list((tmp_path / "cache").rglob("*.npy")))
    cached, decoded = _open(tmp_path / "cache", folder)
    assert len(decoded) == len(SIZES) - finished
    _assert_right(cached)


def test_builders_at_the_same_time_do_not_disturb_each_other(tmp_path, folder):
    found, start = [], threading.Barrier(4)

    def build():
        start.wait()
        found.append(_open(tmp_path / "cache", folder)[0])

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for cached in found:
        _assert_right(cached)
    assert len(list((tmp_path / "cache").rglob("*.*"))) == len(SIZES)  # no temporary file is left


def test_bad_images_are_named(tmp_path, folder):
    for name in ("1.png", "4.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"2 images cannot be read: .*1\.png.*4\.png|4\.png.*1\.png"):
        _open(tmp_path / "cache", folder)

    class Lying(Png):
        def shape(self):
            return 8, 8, 3

    with pytest.raises(ValueError, match=r"0\.png: decoded to uint8 of shape \(20, 31, 3\).*\(8, 8, 3\)"):
        _open_items(tmp_path / "other", [Lying(folder / "0.png")])
    with pytest.raises(ValueError, match="data set is empty"):
        _open_items(tmp_path / "none", [])
    assert not (tmp_path / "none").exists()


def test_a_full_disk_is_known_before_decoding(tmp_path, folder, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    items, decoded = _items(folder)
    message = r"need 2\.44e-05 GB, but only 1e-07 GB are free.*--config.data.cache"
    with pytest.raises(OSError, match=message) as caught:
        _open_items(tmp_path / "cache", items)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "cache")
    assert decoded == []


def test_a_disk_that_refuses_to_write_is_named(tmp_path, folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot be kept here") as caught:
            _open(tmp_path / "cache", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the decoded cache cannot be kept here.*'off'"):
        _open(tmp_path / "file" / "cache", folder)


def test_is_reopened_in_another_process_and_keeps_no_file_open(tmp_path, folder):
    cached, _ = _open(tmp_path / "cache", folder)
    before = len(os.listdir("/proc/self/fd"))
    copied = pickle.loads(pickle.dumps(cached))
    _assert_right(copied)
    assert len(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert ".npy" not in maps.read()
