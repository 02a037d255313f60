"""The log of a run: metrics.jsonl, TensorBoard, contact sheets, a progress bar.

A resumed run continues the same files as if it had not been interrupted: what was written after the
checkpoint it resumes from is removed first.
"""

import contextlib
import json
import math
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import image, scalar
from tqdm import tqdm

from difflid_jax.atomic import write_text
from difflid_jax.images.files import write_png

METRICS = "metrics.jsonl"


class RunLog:
    """The log of a run that starts or resumes at `first_step`; silent unless `primary`.

    evaluated: the last step of which the checkpoint that it resumes from has an evaluation.
    A file that cannot be written (a full disk) raises an OSError at once that names it.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        total_steps: int,
        evaluated: int = -1,
        tensorboard: bool = True,
        primary: bool = True,
    ):
        self._workdir = workdir
        self._file = self._board = None
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, disable=not primary
        )
        if not primary:
            return
        take_back(workdir / METRICS, first_step, evaluated)
        self._file = (workdir / METRICS).open("a")
        if tensorboard:
            self._board = _Board(workdir / "tensorboard", first_step)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """The means since the last call; moves the bar."""
        self.metrics("train", step, values)
        names = {"loss": ("loss", ".4f"), "psnr": ("PSNR", ".2f"), "images_per_second": ("images/s", ".1f")}
        known = {name for name in names if math.isfinite(values.get(name, math.nan))}
        shown = {word: format(values[n], form) for n, (word, form) in names.items() if n in known}
        if values.get("skipped"):
            shown["skipped"] = str(values["skipped"])
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def evaluation(
        self, step: int, scores: Mapping[str, float], sheet: np.ndarray | None, *, kind: str = "validation"
    ) -> None:
        """Mean scores and a contact sheet uint8 (H,W,3), written to sheets/step_000123.png."""
        self.metrics(kind, step, scores)
        self.say(
            f"{kind}, step {step:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        )
        if sheet is None or self._file is None:
            return
        name = f"step_{step:06d}" if kind == "validation" else f"{kind}_{step:06d}"
        path = self._workdir / "sheets" / f"{name}.png"
        with _naming(path):
            path.parent.mkdir(exist_ok=True)
            write_png(path, sheet)
        if self._board is not None:
            self._board.write(step, image(f"{kind}/hazy_restored_clean", sheet, dataformats="HWC"))

    def metrics(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line {"kind", "step", ...}; a number that is not finite becomes null."""
        if self._file is None:
            return
        sound = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _naming(self._workdir / METRICS):
            self._file.write(json.dumps({"kind": kind, "step": step} | sound) + "\n")
            self._file.flush()
        if self._board is not None:
            self._board.write(step, *(scalar(f"{kind}/{name}", value) for name, value in values.items()))

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._file is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
        # Every line was flushed when it was written: what fails now has failed, and been reported, before.
        for file in (self._file, self._board):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


class _Board:
    """TensorBoard's event file.

    Written by the calling thread, without tensorboardX's writer, whose thread ends silently on a full disk;
    the run then waits for it forever.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = self._path.open("ab")
        self._add(file_version="brain.Event:2")
        # TensorBoard drops earlier events of these steps.
        self._add(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, *summaries: Summary) -> None:
        with _naming(self._path):
            for summary in summaries:
                self._add(step=step, summary=summary)
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields) -> None:
        event = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        for part in (length, event):
            self._file.write(part + struct.pack("<I", masked_crc32c(part)))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "the same command resumes from the last checkpoint"
        reason = f"cannot be written ({error.strerror or error}); make room, then {remedy}"
        raise OSError(error.errno, reason, str(path)) from error


def take_back(path: Path, step: int, evaluated: int) -> None:
    """Remove lines of steps after `step` from a metrics file, and an incomplete last line.

    Also the validation of `step` itself, which is repeated unless it is the step `evaluated`.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            found = json.loads(line)
            repeated = found["step"] == step != evaluated and found["kind"] == "validation"
            if found["step"] <= step and not repeated:
                kept.append(line + "\n")
        except ValueError:
            continue
    write_text(path, "".join(kept))
