"""DiffLI²D (ECCV 2024) in JAX/Flax: dehazing guided by the h-space of a frozen diffusion model.

    restorer = difflid_jax.load_restorer()
    clean = restorer(image)  # a PIL image, a NumPy or a JAX array; returns the same kind

Programs: `difflid`, or `python -m difflid_jax`, lists them.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difflid_jax.restoration.restorer import Restorer

__version__ = "0.1.0"


def load_restorer(name_or_folder: str | os.PathLike = "haze", **options) -> "Restorer":
    """Load a restorer: a shipped one by its name ("haze"), or your own from a weights folder or workdir.

    options: see `difflid_jax.restoration.loading.load_restorer`. Sets XLA's flags for the CPU if the
    environment sets none (`cli.tune_cpu`); JAX reads them at its first computation.
    """
    # Imported here so that importing the package does not import JAX.
    from difflid_jax.cli import tune_cpu
    from difflid_jax.restoration.loading import load_restorer

    tune_cpu(os.environ)
    return load_restorer(name_or_folder, **options)
