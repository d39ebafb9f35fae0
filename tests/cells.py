"""Counts the cells of the matrix of fusions (fusion/test_matrix.py) and prints how many passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["passed", "pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

Cell = tuple[str, int, str, str, str]  # fusion, modalities, way of running, leading shape, dtype
CELLS = pytest.StashKey[set[Cell]]()
WAYS = ("eager", "compile", "export", "state dict")


@pytest.fixture
def passed(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Say that a cell holds."""
    cells = request.config.stash.setdefault(CELLS, set())

    def add(name: str, count: int, way: str, lead: str, dtype: Any) -> None:
        cells.add((name, count, way, lead, str(dtype)))

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its cells to whoever started it."""
    if hasattr(session.config, "workeroutput"):
        cells = session.config.stash.get(CELLS, set())
        session.config.workeroutput["cells"] = [list(cell) for cell in cells]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the cells of a worker."""
    cells = node.config.stash.setdefault(CELLS, set())
    cells.update(tuple(cell) for cell in getattr(node, "workeroutput", {}).get("cells", ()))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line a fusion, and the sum."""
    cells = config.stash.get(CELLS, set())
    if not cells:
        return
    count = Counter((name, way) for name, _, way, _, _ in cells)
    places = len({(modalities, lead, dtype) for _, modalities, _, lead, dtype in cells})
    names = sorted({name for name, *_ in cells})
    terminalreporter.section("fusions x ways: cells passed")
    terminalreporter.write_line(f"{'':20}" + "".join(f"{way:>12}" for way in WAYS))
    for name in names:
        counts = (f"{count[name, way]} of {places}" for way in WAYS)
        terminalreporter.write_line(f"{name:20}" + "".join(f"{text:>12}" for text in counts))
    everything = len(names) * len(WAYS) * places
    terminalreporter.write_line(f"{len(cells)} cells passed of {everything}")
