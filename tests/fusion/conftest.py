"""Counts the cells of the matrix (test_matrix.py) and prints how many passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

PASSED = pytest.StashKey[set[tuple[str, int, str, str, torch.dtype]]]()
WAYS = ("eager", "compile", "export", "state dict")


@pytest.fixture
def passed(request: pytest.FixtureRequest) -> Callable[[str, int, str, str, torch.dtype], None]:
    """Say that a cell holds: fusion, modalities, way of running, leading dimensions, dtype."""
    cells = request.config.stash.setdefault(PASSED, set())
    return lambda *cell: cells.add(cell)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    cells = config.stash.get(PASSED, set())
    if not cells:
        return
    count = Counter((name, way) for name, _, way, _, _ in cells)
    places = {(modalities, lead, dtype) for _, modalities, _, lead, dtype in cells}
    names = list(dict.fromkeys(name for name, *_ in sorted(cells, key=str)))
    terminalreporter.section("fusions x ways: cells passed")
    terminalreporter.write_line(f"{'':20}" + "".join(f"{way:>12}" for way in WAYS))
    for name in names:
        counts = (f"{count[name, way]} of {len(places)}" for way in WAYS)
        terminalreporter.write_line(f"{name:20}" + "".join(f"{text:>12}" for text in counts))
    terminalreporter.write_line(
        f"{len(cells)} cells passed of {len(names) * len(WAYS) * len(places)}"
    )
