"""The configs that come with the package, by name."""

import runpy

from ml_collections import ConfigDict

from difflid_jax.cli import find_config


def load_config(name: str) -> ConfigDict:
    """What `get_config()` of configs/`name`.py returns, in a checkout and in an installed package."""
    return runpy.run_path(find_config(name))["get_config"]()
