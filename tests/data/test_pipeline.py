"""Batches depend on the seed and their number alone; partners agree; nothing is seen twice or left out."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from difflid_jax.data.cache import Undecoded
from difflid_jax.data.pipeline import Batches, CropSpec, Evaluation, HazeSpec, signed
from difflid_jax.data.sources import DataSet, InMemory

SIZES = [(24, 33), (40, 26), (31, 31), (25, 60), (50, 50), (24, 24), (27, 41)]
CROP = CropSpec(size=16)


def _coordinates(i):
    """An image whose pixels say where they are: (row, column, image)."""
    rows, columns = np.indices(SIZES[i])
    return np.stack([rows, columns, np.full_like(rows, 10 * i)], -1).astype(np.uint8)


def _data(kind, count=7):
    images = [InMemory(f"clean {i}", _coordinates(i)) for i in range(count)]
    if kind == "pairs":
        partners = [InMemory(f"hazy {i}", 255 - _coordinates(i)) for i in range(count)]
        elements = [(count + i, i) for i in range(count)]
    else:
        ramps = [np.indices(SIZES[i])[0] / (SIZES[i][0] - 1) for i in range(count)]
        partners = [
            InMemory(f"depth {i}", np.rint(ramp * 65535).astype(np.uint16)) for i, ramp in enumerate(ramps)
        ]
        elements = [(i, count + i) if kind == "depth" else (i,) for i in range(count)]
    store = Undecoded(images + partners, progress=False)
    names = tuple(str(i) for i in range(count))
    return DataSet(kind, store, np.asarray(elements), names, f"fingerprint of {kind} {count}")


def _take(batches, n):
    taken = [next(batches) for _ in range(n)]
    batches.close()
    return taken


def _equal(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def _images(batch):
    """Which image every crop of a batch is from."""
    return (batch["clean"][:, 0, 0, 2] // 10).tolist()


@pytest.mark.parametrize("kind", ["pairs", "depth"])
def test_batches_are_uint8_crops_of_partners_at_the_same_place(kind):
    seen = set()
    for batch in _take(Batches(_data(kind), CROP, 8), 5):
        for hazy, clean in zip(batch["hazy"], batch["clean"], strict=True):
            assert hazy.shape == clean.shape == (16, 16, 3) and hazy.dtype == clean.dtype == np.uint8
            image = clean[0, 0, 2] // 10
            flipped = clean[0, 0, 1] > clean[0, 1, 1]
            unflipped = clean[:, ::-1] if flipped else clean
            top, left = unflipped[0, 0, :2]
            np.testing.assert_array_equal(unflipped, _coordinates(image)[top : top + 16, left : left + 16])
            seen.add((image, bool(flipped)))
            if kind == "pairs":
                np.testing.assert_array_equal(hazy, 255 - clean)
    assert {flipped for _, flipped in seen} == {False, True}


def test_no_flips_when_they_are_off():
    for batch in _take(Batches(_data("pairs"), CropSpec(16, flip=False), 8), 5):
        assert (batch["clean"][:, 0, 0, 1] < batch["clean"][:, 0, 1, 1]).all()


def test_crops_reach_every_place():
    corners = set()
    for batch in _take(Batches(_data("pairs", 1), CropSpec(20), 16), 20):
        corners |= {(crop[:, :, 0].min(), crop[:, :, 1].min()) for crop in batch["clean"]}
    rows, columns = zip(*corners, strict=True)
    assert set(rows) == set(range(24 - 20 + 1)) and set(columns) == set(range(33 - 20 + 1))


@pytest.mark.parametrize("size", [3, 7, 10])
def test_every_image_once_an_epoch_in_a_new_order(size):
    order = [image for batch in _take(Batches(_data("pairs"), CROP, size), 7 * 4) for image in _images(batch)]
    epochs = [order[i : i + 7] for i in range(0, len(order) - 6, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_another_seed_another_order_and_other_crops():
    first, second = (_take(Batches(_data("pairs"), CROP, 7, seed=seed), 3) for seed in (0, 1))
    assert [_images(b) for b in first] != [_images(b) for b in second]
    _equal(first, _take(Batches(_data("pairs"), CROP, 7, seed=0), 3))


@pytest.mark.parametrize("count", [1, 2])
def test_crops_and_haze_change_at_their_batches(count):
    data = _data("depth")
    whole, region = CropSpec(8, view=4), CropSpec(8, view=4, region=(0.5, 0.5))
    dimmed, bright = HazeSpec(light=(0.1, 0.2)), HazeSpec()
    parts = [(0, whole, dimmed), (3, region, dimmed), (5, region, bright)]
    taken = [
        _take(Batches(data, crop, 4, haze=haze, later=later, process_index=count - 1, process_count=count), 8)
        for (_, crop, haze), later in zip([*parts, parts[0]], [(), (), (), parts[1:]], strict=True)
    ]
    first, second, third, changing = taken
    _equal(changing, first[:3] + second[3:5] + third[5:])
    assert all((a["view"] != b["view"]).any() for a, b in zip(first, second, strict=True))
    assert all(a["clean"].mean() < b["clean"].mean() / 4 for a, b in zip(second, third, strict=True))


def test_augmentation_depends_on_seed_element_and_epoch_alone():
    """The crops of an epoch do not depend on the batches they come in."""

    def crops(size, n):
        taken = [clean for batch in _take(Batches(_data("depth"), CROP, size), n) for clean in batch["hazy"]]
        return Counter(crop.tobytes() for crop in taken[:7]), Counter(crop.tobytes() for crop in taken[7:14])

    assert crops(7, 2) == crops(2, 7) == crops(14, 1)
    first, second = crops(7, 2)
    assert first != second


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(count):
    data = _data("depth")
    whole = _take(Batches(data, CROP, 8), 6)
    parts = [_take(Batches(data, CROP, 8, process_index=i, process_count=count), 6) for i in range(count)]
    together = [
        {name: np.concatenate([b[name] for b in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    _equal(whole, together)


def test_worker_processes_change_nothing_and_their_death_is_one_line():
    data = _data("depth")
    state = {"next_batch": 3, "data": data.fingerprint}
    batches = Batches(data, CROP, 4, workers=2)
    batches.set_state(state)
    _equal([next(batches) for _ in range(5)], _take(Batches(data, CROP, 4), 8)[3:])
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(OSError, match=r"an input worker died .* -9 .*--config\.data\.workers"):
        _take(batches, 20)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 2)])
def test_one_element_is_a_batch(size, count):
    data = _data("pairs")
    singles = [
        _take(Batches(data, CROP, size, process_index=i, process_count=count), 3) for i in range(count)
    ]
    together = [np.concatenate([part[n]["hazy"] for part in singles]) for n in range(3)]
    (whole,) = _take(Batches(data, CROP, 3 * size), 1)
    np.testing.assert_array_equal(np.concatenate(together), whole["hazy"])
    later = Batches(data, CROP, size)
    later.set_state({"next_batch": 10**6, "data": data.fingerprint})
    assert len(_take(later, 1)[0]["hazy"]) == size


def test_shared_memory_too_small_for_the_workers_is_named_at_once(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64_000_000))
    batches = Batches(_data("pairs"), CROP, 4, workers=2)
    batches.close()
    with pytest.raises(OSError, match=r"/dev/shm has 64 MB free.* 8 workers need 79 MB.*data\.workers"):
        Batches(_data("pairs"), CROP, 1600, workers=8)


_WITH_WORKERS = """
import sys
sys.path.insert(0, {tests!r})
from test_pipeline import *
from test_pipeline import _data
if __name__ == "__main__":
    batches = Batches(_data("pairs"), CROP, 4, workers=1)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    sys.stdin.read()
"""


def _runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
def test_workers_leave_signals_to_their_program_and_end_with_it(tmp_path):
    code = tmp_path / "program.py"
    code.write_text(_WITH_WORKERS.format(tests=str(Path(__file__).parent)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(code)], **pipes) as process:
        worker = int(process.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker, number)
        time.sleep(0.5)
        assert _runs(worker)
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while _runs(worker) and time.monotonic() < end:
            time.sleep(0.1)
        assert not _runs(worker)


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("sharded", [False, True])
def test_goes_on_bit_for_bit(taken, sharded):
    data = _data("depth")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if sharded else None
    undisturbed = _take(Batches(data, CROP, 4), 10)
    stopped = Batches(data, CROP, 4, sharding=sharding)
    for _ in range(taken):
        next(stopped)
    state = json.loads(json.dumps(stopped.get_state()))
    stopped.close()
    resumed = Batches(data, CROP, 4, sharding=sharding)
    resumed.set_state(state)
    rest = _take(resumed, 10 - taken)
    _equal(rest, undisturbed[taken:])
    assert all(isinstance(b["hazy"], jax.Array) == sharded for b in rest)


def test_a_state_can_be_set_in_the_middle_and_on_other_processes():
    data = _data("pairs")
    whole = _take(Batches(data, CROP, 4), 6)
    batches = Batches(data, CROP, 4)
    next(batches)
    state = batches.get_state()
    for _ in range(3):
        next(batches)
    batches.set_state(state)
    _equal(_take(batches, 5), whole[1:])
    second = Batches(data, CROP, 4, process_index=1, process_count=2)
    second.set_state(state)
    _equal(_take(second, 5), [{name: array[2:] for name, array in batch.items()} for batch in whole[1:]])


def test_the_state_of_another_data_set_is_refused():
    state = Batches(_data("pairs", 6), CROP, 4).get_state()
    with pytest.raises(ValueError, match="data set is not that of the checkpoint"):
        Batches(_data("pairs"), CROP, 4).set_state(state)


def test_batches_go_to_the_devices_of_the_sharding():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    (batch,) = _take(Batches(_data("pairs"), CROP, 4, sharding=sharding), 1)
    assert batch["hazy"].sharding == sharding and batch["hazy"].shape == (4, 16, 16, 3)


def test_images_alone():
    (batch,) = _take(Batches(_data("images"), CROP, 5), 1)
    assert batch.keys() == {"image"} and batch["image"].shape == (5, 16, 16, 3)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_evaluation_gives_every_image_once_over_processes(count):
    data = _data("depth")
    whole = list(Evaluation(data))
    parts = [Evaluation(data, process_index=i, process_count=count) for i in range(count)]
    assert sum(len(part) for part in parts) == parts[0].total == 7
    found = sorted((image for part in parts for image in part), key=lambda image: image["index"])
    _equal(found, whole)
    assert [image["name"] for image in whole] == [str(i) for i in range(7)]
    for i, image in enumerate(whole):
        np.testing.assert_array_equal(image["clean"], _coordinates(i))
        assert image["hazy"].shape == (*SIZES[i], 3)
    _equal([Evaluation(data)[4]], [whole[4]])


def test_evaluation_of_pairs_and_its_limit():
    images = list(Evaluation(_data("pairs"), limit=3))
    assert [image["index"] for image in images] == [0, 1, 2]
    for image in images:
        np.testing.assert_array_equal(image["hazy"], 255 - image["clean"])
    assert Evaluation(_data("pairs"), limit=99).total == 7
    with pytest.raises(ValueError, match="cannot be scored"):
        Evaluation(_data("images"))


def test_evaluation_haze_follows_its_seed():
    data = _data("depth")
    a, b = (np.concatenate([p["hazy"].ravel() for p in Evaluation(data, HazeSpec(seed=s))]) for s in (0, 1))
    assert (a != b).any()


def test_the_whole_image_may_be_the_crop_but_not_less():
    _take(Batches(_data("pairs"), CropSpec(24), 4), 1)
    with pytest.raises(
        ValueError, match=r"crop of 25×25 is larger than 2 of 7 images, first 0 \(height 24, width 33\)"
    ):
        Batches(_data("pairs"), CropSpec(25), 4)


@pytest.mark.parametrize(("size", "count"), [(0, 1), (3, 2), (2, 4)])
def test_a_batch_must_divide_over_the_processes(size, count):
    with pytest.raises(ValueError, match=f"batch of {size} must .* {count} processes"):
        Batches(_data("pairs"), CROP, size, process_count=count)


def test_signed():
    values = jax.jit(signed)(np.arange(256, dtype=np.uint8))
    assert values.dtype == np.float32 and values[0] == -1 and values[255] == 1
    np.testing.assert_allclose(np.asarray(values), np.arange(256) / 127.5 - 1, atol=1e-7)
