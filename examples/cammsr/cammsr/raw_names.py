"""What users and items are called where they come from, if a dataset folder says it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

__all__ = ["RAW", "RawNames"]

RAW = "raw:"  # before a name that could be taken for a number or a title


class RawNames:
    """The raw identifiers of users or items by their numbers, and the other way round.

    ``prepare.py`` keeps them; a folder that has none of them has no names.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self._numbers = {name: number for number, name in enumerate(names)}

    @classmethod
    def read(cls, file: Path, column: str) -> RawNames:
        """A column of a table whose row *i* is number *i*."""
        if not file.is_file() or column not in pl.read_parquet_schema(file):
            return cls()
        return cls(tuple(map(str, pl.read_parquet(file, columns=[column])[column])))

    def name(self, number: int) -> str | None:
        """What a number is called, or None."""
        return self.names[number] if number < len(self.names) else None

    def number(self, text: str) -> int | None:
        """The number of a name, with or without ``raw:`` before it, or None."""
        return self._numbers.get(text.removeprefix(RAW))
