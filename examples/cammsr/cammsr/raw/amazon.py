"""What the Amazon collections of all years have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from cammsr.raw.faults import Faults
from cammsr.raw.interactions import spool
from cammsr.raw.lines import Lines, read_lines
from cammsr.raw.source import Work
from cammsr.validate import DatasetError

__all__ = ["check_settings", "read_reviews"]


def check_settings(category: str | None, reviews: str | None, meta: str | None, level: int) -> None:
    """Refuse what no file can be found for."""
    if category is None and (reviews is None or meta is None):
        raise DatasetError("Expected --category, or both --reviews and --meta.")
    if level < 0:
        raise DatasetError(f"Expected category_level >= 0, got {level}.")


def read_reviews(
    path: Path, parse: Callable[[Lines, Faults], Iterator[tuple[str, str, int]]], work: Work
) -> pl.LazyFrame:
    """Users, items and times of a file of reviews, by way of the scratch folder."""
    faults = work.faults(path.name)
    lines = read_lines(path, faults, say=work.say)
    rows = spool(parse(lines, faults), work.scratch / "interactions.parquet")
    faults.check()
    work.say(str(faults))
    return rows
