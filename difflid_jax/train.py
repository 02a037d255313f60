"""Train DiffLI²D, or resume an interrupted run.

    python -m difflid_jax.train --config=demo
    python -m difflid_jax.train --config=configs/sots.py --workdir=runs/sots --config.data.batch_size=8

--config takes a file or the name of a file in configs/; any of its fields can be changed on the command line.
The run directory is --workdir, by default runs/NAME of the config. The same command resumes the run from
its latest checkpoint, as if it had not been interrupted; a run directory with another config is refused, and
a finished run is left as it is. SIGTERM and SIGINT (Ctrl-C) save a checkpoint, print how to resume, and end
with status 128 + the signal's number.

--config.init=WEIGHTS starts from the weights of another restorer of the same architecture.

Several processes train one global batch: launch one per host (or per GPU) under SLURM or Open MPI, or set
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; Kubernetes and TPU pods need --multihost. All
of them must see the run directory and the data. They compare configs and inputs before the first step, and
if one fails, all end.

The run directory receives config.json, metrics.jsonl, checkpoints/, tensorboard/, sheets/, cache/ and, at the
end, weights/, which `evaluate` and `restore` read: those with the best validation score, or the last ones if
there are no validation images.
"""

from collections.abc import Sequence

from absl import flags

from difflid_jax.cli import run
from difflid_jax.config.launch import define_flags, launch


def main(argv: Sequence[str]) -> int:
    # Imported here so that --help does not wait for JAX to load.
    from difflid_jax.config.experiment import resolve
    from difflid_jax.tasks import restorer

    return launch("train", argv, flags.FLAGS, resolve, restorer.train)


if __name__ == "__main__":
    run(main, define_flags)
