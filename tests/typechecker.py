"""The checker of annotations that jaxtyping's pytest hook applies to the package (pyproject.toml)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float
