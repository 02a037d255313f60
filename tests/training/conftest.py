"""A whole experiment that trains in seconds: a random prior, a small network, small images."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from difflid_jax import train
from difflid_jax.config.experiment import Experiment, resolve
from difflid_jax.diffusion.unet import UNet, UNetSpec
from difflid_jax.tasks import restorer
from difflid_jax.weights import store

REPOSITORY = Path(__file__).resolve().parents[2]
PRIOR = UNetSpec(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(),
    channel_mult=(1,),
    num_head_channels=16,
)
CONFIG = """
from difflid_jax.config import schema

def get_config():
    config = schema.default()
    config.prior = "{prior}"
    config.data.dataset = "folders"
    config.data.train, config.data.validation = "{train}", "{validation}"
    config.data.crop, config.data.batch_size = 16, 8
    config.network.preset, config.network.widths, config.network.heads = "", (8, 16), 2
    config.training.steps, config.training.log_every = 12, 1
    # At every step, so that a process is seldom killed outside of writing one.
    config.training.checkpoint_every = 1
    config.training.evaluate_every = 6
    config.training.tensorboard = False
    config.evaluation.lpips = False
    return config
"""


@dataclass(frozen=True)
class Tiny:
    """The experiment's files, and how to run it in this process or in others."""

    config: Path
    prior: Path
    environment: dict[str, str]
    repository: Path = REPOSITORY

    def experiment(self, *given: str) -> Experiment:
        """The experiment as `train` gets it from these flags."""
        values = flags.FlagValues()
        train.define_flags(values)
        arguments = ["train", f"--config={self.config}", *given]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", arguments)  # where config_flags looks for the fields
            values(arguments)
        return resolve(values.config)

    def train(self, workdir: Path, *given: str) -> int:
        """Run in this process; the exit status."""
        return restorer.train(self.experiment(*given), workdir)

    def command(self, workdir: Path, *given: str) -> list[str]:
        program = [sys.executable, "-m", "difflid_jax.train"]
        return [*program, f"--config={self.config}", f"--workdir={workdir}", *given]

    def start(self, workdir: Path, *given: str, **environment: str) -> subprocess.Popen:
        """Run as a program of its own."""
        return subprocess.Popen(
            self.command(workdir, *given),
            env=self.environment | environment,
            cwd=self.repository,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def trained(workdir: Path) -> dict[str, np.ndarray]:
        return store.read(workdir / "weights", "restorer").tensors

    @staticmethod
    def lines(workdir: Path, kind: str) -> list[dict]:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def draw_pairs(folder: Path, count: int, seed: int) -> None:
    """`count` pairs of smooth images, 24×28, the hazy one paler."""
    generator = np.random.default_rng(seed)
    for role in ("hazy", "clean"):
        (folder / role).mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), np.uint8))
        clean = np.asarray(coarse.resize((28, 24), Image.BICUBIC))
        hazy = (0.5 * clean + 100).astype(np.uint8)
        Image.fromarray(clean).save(folder / "clean" / f"{number}.png")
        Image.fromarray(hazy).save(folder / "hazy" / f"{number}.png")


@pytest.fixture(scope="session")
def tiny(drawn, tmp_path_factory) -> Tiny:
    """The experiment's files."""
    folder = tmp_path_factory.mktemp("tiny")
    unet = drawn(lambda: UNet(PRIOR, part="encoder", rngs=nnx.Rngs(0)))
    store.save(folder / "prior", "unet", store.tensors_of(unet), PRIOR.to_dict())
    draw_pairs(folder / "train", 5, seed=1)
    draw_pairs(folder / "validation", 3, seed=2)
    config = folder / "config.py"
    config.write_text(
        CONFIG.format(prior=folder / "prior", train=folder / "train", validation=folder / "validation")
    )
    return Tiny(config, folder / "prior", os.environ | {"JAX_PLATFORMS": "cpu"})


@pytest.fixture(scope="session")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """The workdir of a run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert tiny.train(workdir) == 0
    return workdir
