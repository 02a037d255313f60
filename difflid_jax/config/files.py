"""The configs that come with the package, by name, and the names of their runs."""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from difflid_jax.cli import find_config


def load_config(name: str) -> ConfigDict:
    """The config of a name or file, with its argument if it takes one: 'sots', 'table2:sots,full'."""
    path, _, argument = find_config(name).partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(argument) if argument else get_config()


def run_name(path: str) -> str:
    """The name of a config's run directory: 'configs/table2.py:sots,full' → 'table2-sots-full'."""
    path, _, argument = path.partition(":")
    return "-".join([Path(path).stem, *filter(None, argument.replace("/", ",").split(","))])
