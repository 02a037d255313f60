"""Checkpoints of a run through Orbax, written in the background and verified before they are used.

A checkpoint holds the training state, the state of the data iterator and `meta` (what the run is, its best
score so far). Orbax writes it under a temporary name and renames it when it is complete, so a run that is
killed at any moment leaves only complete ones. Before the renaming, the length and CRC-32 of every file are
written to `seal.json`: a file that is lost, truncated or changed later is detected, and the previous
checkpoint is used.

The latest `keep` checkpoints are kept, and the one with the best validation score.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from difflid_jax import parallel
from difflid_jax.training import seals

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that Orbax is still writing
_REPLACED = "replaced."  # before the step: one that is being written again


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds."""

    step: int
    state: Any
    data: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints in one folder. The best one has the highest `metric`, or the lowest if not `highest`.

    All processes of a run make the same calls in the same order, on a folder that all of them see.
    Raises BlockingIOError if another run uses it.
    """

    def __init__(self, folder: Path, *, keep: int, metric: str = "psnr", highest: bool = True):
        self.folder = Path(folder).absolute()
        self._lock = None
        _quiet_orbax()
        if jax.process_index() == 0:
            self._lock = _claim(self.folder)
            # Orbax would remove these in the background, while the next one is being written.
            for unfinished in self.folder.glob(f"*{_UNFINISHED}*"):
                _remove(unfinished)
            _put_back(self.folder)
            seals.set_damaged_aside(self.folder)
        parallel.wait_for_all("checkpoints verified")
        self._metric = metric
        sign = 1 if highest else -1

        def goodness(scores):
            return sign * scores[metric]

        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=goodness,
                # A folder that cannot be created is an error at once, not after minutes of waiting.
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._seal, create_directories_asynchronously=False
                ),
            ),
        )

    def save(
        self, step: int, state: Any, data: Any, meta: dict[str, Any], scores: dict[str, float] | None = None
    ) -> None:
        """Write a checkpoint in the background, once the previous one is on disk.

        `data` and `meta` are JSON values. Raises OSError if this one or the previous one cannot be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            # Not deleted yet: it may be the only one until the new one is complete.
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(self.folder / f"{_REPLACED}{step}")
            parallel.wait_for_all("checkpoint set aside")
            self._manager.reload()
        if scores is not None and self._metric not in scores:
            scores = None
        # A copy, because the next step writes into the buffers of `state`.
        leaves = _by_name(_copy(state))
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves),
                    data=ocp.args.JsonSave(data),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics=scores,
            )
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Return when everything is on disk. Raises OSError if something cannot be written."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._not_written(error) from error
        if jax.process_index() == 0:
            _put_back(self.folder)

    def close(self) -> None:
        # Errors have already been raised by `save` or `wait`.
        with contextlib.suppress(Exception):
            self._manager.close()
        if self._lock is not None:
            _lock_of(self.folder).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def latest(self) -> Path | None:
        """The folder of the latest checkpoint; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else self.folder / str(step)

    def best(self) -> int | None:
        """The step with the best score; None if none was scored."""
        self.wait()
        step = self._manager.best_step()
        return step if step is not None and self._manager.metrics(step) is not None else None

    def restore_latest(self, like: Any) -> Restored | None:
        """The latest checkpoint; None if there is none. `like` as for `restore`."""
        step = self._manager.latest_step()
        return None if step is None else self.restore(step, like)

    def restore(self, step: int, like: Any) -> Restored:
        """The checkpoint of one step.

        `like` is a state of the same structure, with the shardings to restore to. Raises ValueError if the
        checkpoint has another structure.
        """
        wanted = _by_name(like)
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), wanted
        )
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                data=ocp.args.JsonRestore(),
                meta=ocp.args.JsonRestore(),
            ),
        )
        state = jax.tree.unflatten(jax.tree.structure(like), [found.state[name] for name in wanted])
        return Restored(step, state, found.data, found.meta)

    def _not_written(self, error: Exception) -> OSError:
        complete = max((int(p.name) for p in self.folder.glob("*") if p.name.isdecimal()), default=None)
        remedy = "start again" if complete is None else f"the same command resumes from step {complete}"
        code = _error_number(error)
        reason = os.strerror(code) if code else " ".join(str(error).split())
        return OSError(
            code, f"a checkpoint cannot be written ({reason}); make room, then {remedy}", str(self.folder)
        )

    def _seal(self) -> None:
        """Seal the checkpoint that is about to be renamed."""
        (folder,) = self.folder.glob(f"*{_UNFINISHED}*")
        seals.write(folder)


@functools.cache
def _quiet_orbax() -> None:
    """Keep Orbax and its threads from printing the errors that it also raises where they are handled.

    For the rest of the process: a failed write may be reported long after the checkpoints are closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)
    in_thread, unraisable = threading.excepthook, sys.unraisablehook

    def thread_hook(given) -> None:
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(given.exc_traceback))
        if not any(module.startswith("orbax") for module in modules):
            in_thread(given)

    def unraisable_hook(given) -> None:
        # A thread of TensorStore, which is not a Python object, reports to the loop that Orbax has closed.
        if given.object is not None or str(given.exc_value) != "Event loop is closed":
            unraisable(given)

    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


def _error_number(error: BaseException | None) -> int:
    """The operating system's error behind an error of Orbax or TensorStore; 0 if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return 0


def _claim(folder: Path) -> int:
    """The descriptor of a lock file next to `folder`, which no other process can lock while this one lives.

    A POSIX lock: it ends with the process, however that ends, and its children do not inherit it. On a file
    system without locks, nothing is guarded.
    """
    path = _lock_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(file)
                reason = "another process is training in this folder; wait for it, or use another workdir"
                raise BlockingIOError(error.errno, reason, str(folder.parent)) from error
        # Unless its previous owner removed it in between.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _put_back(folder: Path) -> None:
    """Restore a checkpoint that was being written again, or remove it if its successor is complete."""
    for replaced in folder.glob(f"{_REPLACED}*"):
        place = folder / replaced.name.removeprefix(_REPLACED)
        if place.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(place)


def _remove(folder: Path) -> None:
    """Delete a folder in which TensorStore's threads may still be deleting their lock files."""
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _by_name(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
