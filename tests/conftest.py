"""Fixtures that several test files share."""

import gc
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start: one core each
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no core waits for the other at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("real_data")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' networks are too small for a second thread to help, and results are then the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _only_what_tests_make_is_garbage():
    """Modules stay: to look through all of them, as each training does to free memory, takes a quarter of a second."""
    gc.collect()  # else what an earlier module left would stay too, with its open files
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weather grids; the test is skipped, saying so, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real weather grids at {REAL_DATA}")
    return REAL_DATA
