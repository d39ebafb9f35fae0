"""What every source of raw data offers, and what it is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from cammsr.raw.download import fetch
from cammsr.raw.faults import Faults
from cammsr.raw.items import Description, align

__all__ = ["Source", "Work"]


@dataclass(frozen=True)
class Work:
    """Where a source may write, and how it speaks to a person.

    Args:
        scratch: a folder that is deleted in the end.
        cache: a folder that is kept: downloads, images, encoded shards.
        offline: whether nothing may be downloaded.
        corrupt_limit: the largest share of unreadable rows.
        say: prints a line.
    """

    scratch: Path
    cache: Path
    offline: bool
    corrupt_limit: float
    say: Callable[[str], None]

    def fetch(self, source: str, known_hash: str | None = None) -> Path:
        """A local file as it is; a URL by way of the cache."""
        cache = self.cache / "downloads"
        return fetch(source, cache, known_hash=known_hash, offline=self.offline, say=self.say)

    def faults(self, source: str, unit: str = "line") -> Faults:
        """A counter with this run's limit."""
        return Faults(source, self.corrupt_limit, unit)

    def align(
        self, descriptions: Iterable[Description], items: pl.Series, faults: Faults
    ) -> pl.DataFrame:
        """One row for each item; says how many were described, and refuses too many faults."""
        described, count = align(descriptions, items)
        faults.check()
        self.say(f"{faults}; {count:,} of {len(items):,} items described")
        return described


class Source(Protocol):
    """A kind of raw data."""

    def interactions(self, work: Work) -> pl.LazyFrame:
        """``user``, ``item`` (text), ``timestamp`` (Int64), in the order of the file."""

    def describe(self, items: pl.Series, work: Work) -> pl.DataFrame:
        """One row for each of these items, with the columns of :data:`cammsr.raw.items.SCHEMA`."""

    @property
    def published_images(self) -> str | None:
        """File or URL of published image features, if they are asked for."""

    def note(self) -> dict[str, Any]:
        """What a person would want to know of it later."""
