"""What a run says while it goes: metrics.jsonl, TensorBoard, picture sheets, a progress bar.

A resumed run goes on in the same files as if it had never stopped: what was written after the checkpoint
it resumes from is taken back first.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from difflid_jax.data.images import write_png

METRICS = "metrics.jsonl"


class RunLog:
    """The log of a run that starts or goes on at `first_step`; silent where not `primary`."""

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        total_steps: int,
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
        take_back(workdir / METRICS, first_step)
        self._file = (workdir / METRICS).open("a")
        if tensorboard:
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

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
        """Mean scores and a picture sheet uint8 (H,W,3), which becomes sheets/step_000123.png."""
        self.metrics(kind, step, scores)
        self.say(
            f"{kind}, step {step:,}: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        )
        if sheet is None or self._file is None:
            return
        folder = self._workdir / "sheets"
        folder.mkdir(exist_ok=True)
        name = f"step_{step:06d}" if kind == "validation" else f"{kind}_{step:06d}"
        write_png(folder / f"{name}.png", sheet)
        if self._board is not None:
            self._board.add_image(f"{kind}/hazy_restored_clean", sheet, step, dataformats="HWC")

    def metrics(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One line {"kind", "step", ...}; a number that is not finite becomes null."""
        if self._file is None:
            return
        sound = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step} | sound) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._file is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def take_back(path: Path, step: int) -> None:
    """Remove the lines of later steps than `step` from a metrics file, and a line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
