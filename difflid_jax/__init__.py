"""DiffLI²D (ECCV 2024) in JAX/Flax: dehazing guided by the h-space of a frozen diffusion model.

In Python, `restorer = difflid_jax.load_restorer()` and then `clean = restorer(image)`: a PIL image, a NumPy
or a JAX array in, the same kind out. Programs: `python -m difflid_jax.restore --help` and its neighbours.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difflid_jax.restoration.restorer import Restorer

__version__ = "0.1.0"


def load_restorer(name_or_folder: str | os.PathLike = "haze", **options) -> "Restorer":
    """The restorer of a shipped name ("haze") or of a folder of one's own training run.

    options: see `difflid_jax.restoration.loading.load_restorer`. Sets XLA's flags for the CPU where the
    environment has none (`cli.tune_cpu`): JAX reads them when it first computes.
    """
    # Here and not above: reading the version should not take as long as loading JAX.
    from difflid_jax.cli import tune_cpu
    from difflid_jax.restoration.loading import load_restorer

    tune_cpu(os.environ)
    return load_restorer(name_or_folder, **options)
