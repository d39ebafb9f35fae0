"""Lines of progress."""

import pytest

from cammsr.raw import progress
from cammsr.raw.progress import PAUSE, Progress


def test_says_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    known, unknown = Progress("read", 300, said.append, start=100), Progress("read", 0, said.append)
    known.at(101)
    assert not said
    now += PAUSE
    known.at(150)
    known.at(151)
    unknown.at(50)
    assert said == [
        "  read: 150 of 300 items, 10.0 a second, 15 s left",
        "  read: 50 items, 10.0 a second",
    ]
