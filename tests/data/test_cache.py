"""The decoded cache gives the decoded pixels, whatever happened to it, its builder or its source."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difflid_jax.data import cache_format
from difflid_jax.data.cache import DecodedCache, Undecoded, fingerprint, open_cache

SIZES = [(20, 31), (64, 48), (17, 17), (90, 5), (33, 64), (40, 40)]


@dataclass(frozen=True)
class Png:
    """A PNG file as an item that records its decodings."""

    file: Path
    decoded: list
    recipe: str = ""
    dtype: str = "uint8"

    @property
    def name(self):
        return self.file.name

    def shape(self):
        with Image.open(self.file) as picture:
            return picture.height, picture.width, 3

    def load(self):
        self.decoded.append(self.name)
        try:
            with Image.open(self.file) as picture:
                return np.asarray(picture.convert("RGB"))
        except OSError as error:
            raise ValueError(f"{self.file}: {error}") from error


@pytest.fixture
def folder(tmp_path):
    """Six pictures of different sizes."""
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


def _open(cache, folder, **changes):
    """The opened cache and the names that were decoded for it."""
    items, decoded = _items(folder, **changes)
    return open_cache(cache, items, progress=False), sorted(decoded)


def _assert_right(store):
    assert len(store) == len(SIZES)
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(store.read(i), _pixels(i))


def test_holds_pictures_of_different_sizes_and_reads_windows(tmp_path, folder):
    cached, _ = _open(tmp_path / "cache", folder)
    undecoded = Undecoded(_items(folder)[0], progress=False)
    _assert_right(cached)
    _assert_right(undecoded)
    for i, (height, width) in enumerate(SIZES):
        window = (height // 3, width // 4, height // 2, width // 2)
        top, left, rows, columns = window
        expected = _pixels(i)[top : top + rows, left : left + columns]
        np.testing.assert_array_equal(cached.window(i, *window), expected)
        np.testing.assert_array_equal(undecoded.window(i, *window), expected)
        assert cached.shape(i) == undecoded.shape(i) == (height, width, 3)


def test_a_window_is_a_view_of_the_file_that_cannot_be_written(tmp_path, folder):
    cached, _ = _open(tmp_path / "cache", folder)
    window = cached.window(1, 3, 5, 8, 8)
    assert not window.flags.owndata and not window.flags.writeable
    assert window.strides == (48 * 3, 3, 1)


def test_decodes_once_and_not_again(tmp_path, folder):
    cache = tmp_path / "cache"
    _, decoded = _open(cache, folder)
    assert decoded == [f"{i}.png" for i in range(len(SIZES))]
    again, decoded = _open(cache, folder)
    assert decoded == []
    _assert_right(again)


def test_other_dtypes_and_shapes(tmp_path, folder):
    class Depth(Png):
        def shape(self):
            return super().shape()[:2]

        def load(self):
            return super().load().astype(np.uint16).sum(-1, dtype=np.uint16)

    items = [Depth(folder / f"{i}.png", [], dtype="uint16") for i in range(len(SIZES))]
    cached = open_cache(tmp_path / "cache", items, progress=False)
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(cached.read(i), _pixels(i).sum(-1))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_changed_picture_makes_another_cache(tmp_path, folder, keep_times):
    first, _ = _open(tmp_path / "cache", folder)
    file = folder / "2.png"
    times = file.stat()
    Image.fromarray(255 - _pixels(2)).save(file, compress_level=1)
    with open(file, "ab") as stream:  # equal sizes must not hide the change
        stream.write(b"\0" * max(0, times.st_size - file.stat().st_size))
    if keep_times:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    second, decoded = _open(tmp_path / "cache", folder)
    assert "2.png" in decoded and second.folder != first.folder
    np.testing.assert_array_equal(second.read(2), 255 - _pixels(2))


def test_another_recipe_or_selection_makes_another_cache(tmp_path, folder):
    first, _ = _open(tmp_path / "cache", folder)
    second, _ = _open(tmp_path / "cache", folder, recipe="crop")
    (folder / "5.png").unlink()
    third, _ = _open(tmp_path / "cache", folder)
    assert len({first.folder, second.folder, third.folder}) == 3 and len(third) == 5


def test_a_touched_or_moved_data_set_uses_the_same_cache(tmp_path, folder):
    first, _ = _open(tmp_path / "cache", folder)
    before = fingerprint(_items(folder)[0])
    moved = folder.rename(tmp_path / "elsewhere")
    for file in moved.iterdir():
        file.touch()
    second, decoded = _open(tmp_path / "cache", moved)
    assert decoded == [] and second.folder == first.folder
    assert fingerprint(_items(moved)[0]) == before


def test_the_fingerprint_tells_sets_apart(folder):
    def take(items):
        return fingerprint(items)

    items = _items(folder)[0]
    whole = take(items)
    assert take(items[:-1]) != whole
    assert take(_items(folder, recipe="crop")[0]) != whole
    with open(folder / "0.png", "ab") as file:
        file.write(b"\0")
    assert take(items) != whole


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_damaged_picture_is_found_and_decoded_again(tmp_path, folder, place, capsys):
    first, _ = _open(tmp_path / "cache", folder)
    file = first.folder / "images.bin"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    repaired, decoded = _open(tmp_path / "cache", folder)
    assert len(decoded) == 1
    _assert_right(repaired)
    assert "damaged" in capsys.readouterr().err
    assert _open(tmp_path / "cache", folder)[1] == []


@pytest.mark.parametrize("damage", ["truncated", "no images", "no index", "bad index", "other index"])
def test_a_broken_cache_is_built_again(tmp_path, folder, damage):
    place = _open(tmp_path / "cache", folder)[0].folder
    index = place / "index.json"
    if damage == "truncated":
        os.truncate(place / "images.bin", 1000)
    elif damage == "no images":
        (place / "images.bin").unlink()
    elif damage == "no index":
        index.unlink()
    elif damage == "bad index":
        index.write_text(index.read_text()[:-9])
    else:
        changed = json.loads(index.read_text())
        changed["items"][0]["offset"] = 64
        index.write_text(json.dumps(changed))
    _assert_right(_open(tmp_path / "cache", folder)[0])


def test_a_cache_copied_elsewhere_is_verified_and_used(tmp_path, folder):
    _open(tmp_path / "cache", folder)
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    copied, decoded = _open(tmp_path / "copy", folder)
    assert decoded == []
    _assert_right(copied)


def test_an_interrupted_build_goes_on(tmp_path, folder):
    items, _ = _items(folder)

    class Interrupted(Png):
        def load(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "cache", [*items[:-1], Interrupted(items[-1].file, [])], progress=False)
    journal = next((tmp_path / "cache").glob("*.building")) / "journal.txt"
    finished = {int(line.split()[0]) for line in journal.read_text().splitlines()}
    cached, decoded = _open(tmp_path / "cache", folder)
    assert decoded == [f"{i}.png" for i in range(len(SIZES)) if i not in finished]
    _assert_right(cached)


_SLOW_BUILD = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_cache
from difflid_jax.data import cache_format
from difflid_jax.data.cache import open_cache
class Slow(test_cache.Png):
    def load(self):
        if self.name >= "4":
            sys.stdout.write("waiting\\n")
            sys.stdout.flush()
            time.sleep(60)
        return super().load()
files = sorted(Path({folder!r}).glob("*.png"))
open_cache({cache!r}, [Slow(file, []) for file in files], progress=False)
"""


def test_a_killed_build_goes_on(tmp_path, folder):
    code = _SLOW_BUILD.format(
        tests=str(Path(__file__).parent), folder=str(folder), cache=str(tmp_path / "cache")
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        journal = next((tmp_path / "cache").glob("*.building")) / "journal.txt"
        while len(journal.read_text().splitlines()) < 4:
            pass
        process.send_signal(signal.SIGKILL)
    with open(journal, "a") as file:
        file.write("4 12345\n5 1")  # claims that the checksums must refute
    cached, decoded = _open(tmp_path / "cache", folder)
    assert decoded == ["4.png", "5.png"]
    _assert_right(cached)


def test_processes_that_want_the_same_cache_build_it_once(tmp_path, folder):
    items, decoded = _items(folder)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_cache(tmp_path / "cache", items, progress=False)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(decoded) == len(SIZES)
    for cached in found:
        _assert_right(cached)


def test_every_corrupt_picture_is_named_and_nothing_is_left(tmp_path, folder):
    for name in ("1.png", "4.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"2 pictures cannot be read: .*1\.png.*4\.png|4\.png.*1\.png"):
        _open(tmp_path / "run" / "cache", folder)
    assert not (tmp_path / "run").exists()


def test_a_picture_unlike_its_header_is_refused(tmp_path, folder):
    class Lying(Png):
        def shape(self):
            return 8, 8, 3

    with pytest.raises(ValueError, match=r"0\.png: decoded to uint8 of shape \(20, 31, 3\).*\(8, 8, 3\)"):
        open_cache(tmp_path / "cache", [Lying(folder / "0.png", [])], progress=False)


def test_a_full_disk_is_known_before_decoding(tmp_path, folder, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    items, decoded = _items(folder)
    with pytest.raises(OSError, match=r"need 2\.46e-05 GB, 1e-07 GB are free.*--config.data.cache") as caught:
        open_cache(tmp_path / "cache", items, progress=False)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "cache")
    assert decoded == [] and not (tmp_path / "cache").exists()


def test_a_disk_that_refuses_the_room_is_known_before_decoding(tmp_path, folder):
    items, decoded = _items(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="cannot be kept here"):
            open_cache(tmp_path / "cache", items, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert decoded == [] and not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"the decoded cache cannot be kept here.*'off'"):
        _open(tmp_path / "file" / "cache", folder)


def test_a_finished_cache_that_cannot_be_written_is_used(tmp_path, folder, monkeypatch):
    _open(tmp_path / "cache", folder)
    for file in folder.iterdir():
        file.touch()

    def refuse(path, text):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(cache_format, "write_text", refuse)
    cached, decoded = _open(tmp_path / "cache", folder)
    assert decoded == []
    _assert_right(cached)


def test_a_disk_that_cannot_reserve_room_is_used_all_the_same(tmp_path, folder, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    _assert_right(_open(tmp_path / "cache", folder)[0])


def test_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        open_cache(tmp_path / "cache", [], progress=False)
    assert not (tmp_path / "cache").exists()


def test_is_reopened_in_another_process(tmp_path, folder):
    cached, _ = _open(tmp_path / "cache", folder)
    copied = pickle.loads(pickle.dumps(cached))
    assert isinstance(copied, DecodedCache)
    _assert_right(copied)
