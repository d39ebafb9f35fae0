"""What every test shares: a seed, few threads, deterministic properties, real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are drawn without a screen

import pytest
import torch
from hypothesis import settings

from tests.cells import (
    passed,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)

__all__ = ["passed", "pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

# No deadline: the first call of a torch operator is slow for reasons that no test is about.
settings.register_profile("dev", deadline=None)
# The same examples on every run, so that a red build is red again when somebody looks.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# The tensors of a test are small: more threads would only wait for each other. One of several
# processes (pytest -n) gets along with one.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real datasets, which lies beside the repository where there is one."""
    if not DATA.is_dir():
        pytest.skip("the development data (../shared/data) is not on this machine")
    return DATA
