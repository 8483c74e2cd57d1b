"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' networks are too small for a second thread to help, and results are then the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weather grids; the test is skipped, saying so, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real weather grids at {REAL_DATA}")
    return REAL_DATA
