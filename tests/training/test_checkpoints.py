"""Checkpoints are complete or not there, and damage to any of their files is detected."""

import resource
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from difflid_jax.training.checkpoints import Checkpoints


def state(value):
    return {"params": {"w": jnp.full((4, 3), value, jnp.float32)}, "step": jnp.int32(value)}


def fill(folder, steps, **options):
    checkpoints = Checkpoints(folder, **{"keep": 3} | options)
    for step in steps:
        checkpoints.save(step, state(step), {"next": step}, {"run": "a"})
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    fill(folder, [10, 20])
    return folder


def opened(folder):
    checkpoints = Checkpoints(folder, keep=3)
    restored = checkpoints.restore_latest(state(0))
    checkpoints.close()
    return restored


def test_everything_comes_back(two):
    restored = opened(two)
    assert (restored.step, restored.data, restored.meta) == (20, {"next": 20}, {"run": "a"})
    assert jax.tree.structure(restored.state) == jax.tree.structure(state(0))
    np.testing.assert_array_equal(restored.state["params"]["w"], np.full((4, 3), 20, np.float32))
    checkpoints = Checkpoints(two, keep=3)
    assert checkpoints.latest() == two / "20"
    assert checkpoints.best() is None
    checkpoints.close()


def test_an_empty_folder_has_none(tmp_path):
    assert opened(tmp_path / "checkpoints") is None


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def change(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [delete, truncate, change])
def test_damage_to_any_file_of_the_newest_falls_back_with_a_warning(two, tmp_path, damage):
    # Orbax marks an item as written by a file that nobody reads again, and the whole likewise.
    files = [
        p
        for p in (two / "20").rglob("*")
        if p.is_file() and p.relative_to(two / "20").name != "commit_success.txt"
    ]
    assert len(files) > 8
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(two, folder)
        damage(folder / file.relative_to(two))
        with pytest.warns(UserWarning, match="20 is damaged.*using the previous one"):
            restored = opened(folder)
        assert restored.step == 10 and float(restored.state["params"]["w"][0, 0]) == 10, file
        assert (folder.parent / "damaged" / "20.0").is_dir()
        fill(folder, [20])
        assert opened(folder).step == 20


def test_a_copy_that_orbax_has_not_renamed_yet_is_no_checkpoint(two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp-0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(folder).step == 10
    assert [path.name for path in folder.iterdir()] == ["10"]


def test_all_damaged_is_an_error(two, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    for step in ("10", "20"):
        delete(folder / step / "seal.json")
    with pytest.raises(ValueError, match=r"every checkpoint is damaged.*another workdir"):
        opened(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["10", "20"]


def test_latest_and_best_are_kept(tmp_path):
    for highest, best in ((True, 3), (False, 5)):
        folder = tmp_path / str(highest)
        checkpoints = Checkpoints(folder, keep=2, metric="score", highest=highest)
        for step, score in enumerate([4.0, None, 9.0, 5.0, 1.0, 6.0, 7.0, None], start=1):
            checkpoints.save(step, state(step), {}, {}, None if score is None else {"score": score})
        assert checkpoints.best() == best
        checkpoints.close()
        assert sorted(int(path.name) for path in folder.iterdir()) == sorted({best, 7, 8})
        again = Checkpoints(folder, keep=2, metric="score", highest=highest)
        assert again.best() == best and again.restore(best, state(0)).step == best
        again.close()


def test_a_step_is_saved_again_with_its_score(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, metric="score")
    checkpoints.save(5, state(5), {}, {})
    checkpoints.save(5, state(6), {}, {}, {"score": 1.0})
    assert checkpoints.best() == 5
    assert float(checkpoints.restore(5, state(0)).state["params"]["w"][0, 0]) == 6
    checkpoints.close()


def test_a_checkpoint_that_is_written_again_counts_until_its_successor_is_complete(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    fill(folder, [5])
    checkpoints = Checkpoints(folder, keep=1, metric="score")

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(5, state(6), {}, {}, {"score": 1.0})
    assert [path.name for path in folder.iterdir()] == ["replaced.5"]
    assert opened(folder).step == 5  # by another process, which puts it back

    checkpoints = Checkpoints(folder, keep=1, metric="score")
    checkpoints.save(5, state(6), {}, {}, {"score": 1.0})
    checkpoints.wait()
    assert [path.name for path in folder.iterdir()] == ["5"] and checkpoints.best() == 5
    checkpoints.close()
    # Killed after the renaming, before the old one was removed.
    shutil.copytree(folder / "5", folder / "replaced.5")
    assert float(opened(folder).state["params"]["w"][0, 0]) == 6
    assert [path.name for path in folder.iterdir()] == ["5"]


def test_another_structure_is_refused(two):
    checkpoints = Checkpoints(two, keep=3)
    other = {"params": {"v": jnp.zeros((4, 3))}, "step": jnp.int32(0)}
    with pytest.raises(ValueError):
        checkpoints.restore_latest(other)
    checkpoints.close()


def test_the_saved_state_is_not_what_later_steps_make_of_its_buffers(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)
    current = {"w": jnp.zeros(2_000_000)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, current, {}, {})
    for _ in range(20):
        current = step(current)
    checkpoints.wait()
    restored = checkpoints.restore_latest({"w": jnp.ones(2_000_000)})
    assert not restored.state["w"].any()
    checkpoints.close()


# Orbax's own thread may find its event loop closed after the error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_error_that_names_the_folder_and_what_is_complete(two, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    checkpoints = Checkpoints(folder, keep=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        noise = jax.random.normal(jax.random.key(0), (500, 500))
        message = r"a checkpoint cannot be written \(File too large\); make room, then .* from step 20"
        with pytest.raises(OSError, match=message) as caught:
            checkpoints.save(30, {"params": {"w": noise}, "step": jnp.int32(30)}, {}, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        checkpoints.close()
    # Orbax logs the error and lets it end its own threads, too: neither is seen.
    assert caught.value.filename == str(folder) and not caplog.records
    assert opened(folder).step == 20


def test_a_folder_that_another_process_trains_in_is_refused_until_that_ends(two, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(two, folder)
    take = f"import fcntl, time; f = open({f'{folder}.lock'!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{take}; print('taken', flush=True); time.sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(BlockingIOError, match="another process is training"):
            Checkpoints(folder, keep=3)
        other.kill()
    fill(folder, [30])
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoints"]
