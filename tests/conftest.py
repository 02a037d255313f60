"""Fixtures for all tests: the reference values and real pictures that lie beside the repository, if any."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository (real pictures, large reference values)."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Reference values that are too large to commit."""
    return shared / "golden"
