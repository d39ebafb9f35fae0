"""How far a long step is, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Progress"]

PAUSE = 5.0  # seconds between two lines


class Progress:
    """Say how much is done, how fast it goes and how long it will take.

    Args:
        what: what is being done.
        total: how much there is; 0 if nobody knows.
        say: prints a line.
        unit: what is counted.
        start: what was done before.
    """

    def __init__(
        self,
        what: str,
        total: int,
        say: Callable[[str], None],
        *,
        unit: str = "items",
        start: int = 0,
    ) -> None:
        self.what, self.total, self.say, self.unit, self.start = what, total, say, unit, start
        self.begun = self.last = time.monotonic()

    def at(self, done: int) -> None:
        """Say it, if the last line is a while ago."""
        now = time.monotonic()
        if now - self.last < PAUSE:
            return
        self.last = now
        rate = (done - self.start) / (now - self.begun)
        line = f"  {self.what}: {done:,}"
        if self.total:
            line += f" of {self.total:,}"
        line += f" {self.unit}, {rate:,.1f} a second"
        if self.total and rate > 0:
            line += f", {(self.total - done) / rate:,.0f} s left"
        self.say(line)
