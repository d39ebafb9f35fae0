"""Any CSV or parquet file by a map of its columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from cammsr.raw.columns import check_names, check_rows, identifier, scan
from cammsr.raw.items import Description, align, join_text
from cammsr.raw.source import Work
from cammsr.validate import DatasetError

__all__ = ["InteractionColumns", "ItemColumns", "Table"]

JSON = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz")


@dataclass(frozen=True)
class InteractionColumns:
    """Which columns of the interactions mean what.

    Args:
        user: Who.
        item: What.
        timestamp: When; null means that the rows stand in the order of time.
    """

    user: str = "user"
    item: str = "item"
    timestamp: str | None = "timestamp"


@dataclass(frozen=True)
class ItemColumns:
    """Which columns of the items mean what.

    Args:
        item: The same identifiers as in the interactions.
        title: What a person reads.
        category: One label.
        categories: Several labels: a list, or text joined by label_separator.
        text: What the text encoder reads, joined in this order; title and labels by default.
        image: A URL, or a file beside the items' file.
    """

    item: str = "item"
    title: str | None = None
    category: str | None = None
    categories: str | None = None
    text: list[str] | None = None
    image: str | None = None

    def known(self) -> list[str]:
        """The columns that say something of an item."""
        single = (self.title, self.category, self.categories, self.image)
        return [name for name in (*single, *(self.text or [])) if name is not None]


@dataclass(frozen=True)
class Table:
    """Any CSV or parquet table.

    Args:
        interactions_file: File or URL; parquet by its ending .parquet or .pq, otherwise CSV.
        columns: Its columns.
        items_file: File or URL of what is known of the items.
        item_columns: Its columns.
        separator: Between the columns of a CSV file; "tab" is a tab.
        header: Whether a CSV file names its columns; otherwise they are column_1, column_2, ...
        label_separator: Between the labels of the column categories.
        timestamp_scale: What timestamps are multiplied with, to keep fractions.
        time_format: How dates are written, for example "%Y-%m-%d %H:%M:%S"; numbers by default.
    """

    interactions_file: str
    columns: InteractionColumns = field(default_factory=InteractionColumns)
    items_file: str | None = None
    item_columns: ItemColumns = field(default_factory=ItemColumns)
    separator: str = ","
    header: bool = True
    label_separator: str = "|"
    timestamp_scale: float = 1.0
    time_format: str | None = None

    def interactions(self, work: Work) -> pl.LazyFrame:
        """The rows of the interactions' file."""
        if self.items_file is not None:  # before hours of reading
            self._check_items(str(work.fetch(self.items_file)))
        path = str(work.fetch(self.interactions_file))
        columns = {name: getattr(self.columns, name) for name in ("user", "item", "timestamp")}
        table = self._scan(path)
        check_names(path, table, columns.values())
        faults = work.faults(path, "row")
        rows = check_rows(
            table,
            columns,
            faults,
            work.scratch / "interactions.parquet",
            scale=self.timestamp_scale,
            time_format=self.time_format,
        )
        work.say(str(faults))
        return rows

    def describe(self, items: pl.Series, work: Work) -> pl.DataFrame:
        """The rows of the items' file, if there is one."""
        if self.items_file is None:
            work.say("no --items_file: titles and categories are unknown")
            return align([], items)[0]
        path = work.fetch(self.items_file)
        self._check_items(str(path))
        table, named = self._scan(str(path)), self.item_columns
        columns = list(dict.fromkeys([named.item, *named.known()]))
        known = pl.DataFrame({"wanted": items}).lazy()
        try:
            wanted = identifier(table.collect_schema()[named.item], named.item).alias("wanted")
            texts = [_to_text(table, name, self.label_separator) for name in columns]
            rows = table.select([*texts, wanted]).join(known, on="wanted", how="semi")
            found = rows.collect(engine="streaming")
        except pl.exceptions.PolarsError as error:
            raise DatasetError(f"{path} cannot be read as a table ({error}).") from error
        described, count = align(self._descriptions(found, path.parent), items)
        work.say(f"{path}: {count:,} of {len(items):,} items described")
        return described

    @property
    def published_images(self) -> None:
        """None are published."""

    def note(self) -> dict[str, Any]:
        """The settings above."""
        return asdict(self)

    def _check_items(self, path: str) -> None:
        table, named = self._scan(path), self.item_columns
        check_names(path, table, [named.item, *named.known()])
        if not named.known():
            raise DatasetError(
                "Expected item_columns.title, category, categories, text or image: which column "
                f"says what of an item. Those of {path} are: "
                f"{', '.join(table.collect_schema().names())}."
            )

    def _scan(self, path: str) -> pl.LazyFrame:
        if path.endswith(JSON):
            raise DatasetError(f"Expected a CSV or parquet file, got {path}.")
        separator = "\t" if self.separator in ("tab", "\\t") else self.separator
        return scan(path, separator=separator, header=self.header)

    def _descriptions(self, rows: pl.DataFrame, folder: Path) -> Iterator[Description]:
        named = self.item_columns
        for row in rows.iter_rows(named=True):
            title, category = _get(row, named.title), _get(row, named.category)
            labels = (_get(row, named.categories) or "").split(self.label_separator)
            default = [title, [*labels, category]]
            text = default if named.text is None else [row[name] for name in named.text]
            image = (_get(row, named.image) or "").strip()
            if image and "://" not in image:
                image = str(folder / image)
            yield Description(row["wanted"], title, category, labels, join_text(*text), image)


def _get(row: dict[str, str | None], name: str | None) -> str | None:
    return None if name is None else row[name]


def _to_text(table: pl.LazyFrame, name: str, separator: str) -> pl.Expr:
    dtype = table.collect_schema()[name]
    if isinstance(dtype, pl.List):
        return pl.col(name).cast(pl.List(pl.String)).list.join(separator, ignore_nulls=True)
    return pl.col(name).cast(pl.String)
