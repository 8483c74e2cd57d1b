"""Fixtures that several test files share."""

from pathlib import Path

import pytest

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weather grids; the test is skipped, saying so, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real weather grids at {REAL_DATA}")
    return REAL_DATA
