"""Raw interactions as numbers: contiguous ids, sorted, without duplicates, optionally a k-core.

A source hands over a lazy table of ``user`` and ``item`` (text) and ``timestamp`` (integer), in
the order of its file. The text passes through in a stream; what is held is 16 bytes a row and the
distinct ids.

* Ids are the positions in the sorted distinct raw ids, so they do not depend on the rows' order.
* Rows are sorted by user, then timestamp. **Rows of a user with equal timestamps keep the order of
  the file**, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cammsr.validate import DatasetError

__all__ = ["Duplicates", "Interactions", "number", "spool"]

Duplicates = Literal["event", "item", "keep"]

SPOOL_SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])
SPOOL_ROWS = 100_000


@dataclass(frozen=True, eq=False)
class Interactions:
    """Sorted rows, and the raw identifiers of their users and items."""

    rows: pl.DataFrame  # user_id, item_id (Int32), timestamp (Int64)
    users: pl.Series  # row i is the raw identifier of user i
    items: pl.Series
    read: int  # rows before anything was dropped
    duplicates: int  # rows dropped as duplicates
    thinned: int  # rows dropped by the k-core


def spool(rows: Iterable[tuple[str, str, int]], path: Path) -> pl.LazyFrame:
    """Write (user, item, timestamp) rows to a parquet file as they come, and scan it."""
    with pq.ParquetWriter(path, SPOOL_SCHEMA) as writer:
        batch: list[tuple[str, str, int]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == SPOOL_ROWS:
                writer.write_table(_to_table(batch))
                batch.clear()
        writer.write_table(_to_table(batch))
    return pl.scan_parquet(path)


def number(raw: pl.LazyFrame, *, duplicates: Duplicates = "event", k_core: int = 0) -> Interactions:
    """Number, sort and thin the interactions.

    Args:
        raw: ``user``, ``item``, ``timestamp`` in the order of the file.
        duplicates: ``"event"`` drops rows that repeat user, item and timestamp; ``"item"`` keeps
            the first time that a user takes an item; ``"keep"`` keeps every row.
        k_core: drop users and items with fewer interactions until none is left; 0 keeps all.

    Raises:
        DatasetError: nothing is left.
    """
    users, items = _distinct(raw, "user"), _distinct(raw, "item")
    if users.is_empty():
        raise DatasetError("There are no interactions. Check the file and its columns.")
    table = _encode(raw, users, items)
    read = len(table)
    table = _drop_duplicates(table, duplicates)
    kept = len(table)
    if k_core > 1:
        keep = _core(table["user_id"].to_numpy(), table["item_id"].to_numpy(), k_core)
        table = table.filter(pl.Series(keep))
        if table.is_empty():
            raise DatasetError(
                f"The {k_core}-core is empty: no {k_core} users share {k_core} items. "
                "Choose a smaller --k_core."
            )
        users, table = _renumber(table, "user_id", users)
        items, table = _renumber(table, "item_id", items)
    return Interactions(table, users, items, read, read - kept, kept - len(table))


def _to_table(batch: list[tuple[str, str, int]]) -> pa.Table:
    columns = list(zip(*batch, strict=True)) or [(), (), ()]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, SPOOL_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SPOOL_SCHEMA)


def _distinct(raw: pl.LazyFrame, name: str) -> pl.Series:
    found = raw.select(pl.col(name).unique()).collect(engine="streaming")
    return found.to_series().sort()


def _encode(raw: pl.LazyFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """Text to numbers; sorted by user, then time, then the row's place in the file."""
    coded = raw.with_row_index("row")
    for name, ids in (("user", users), ("item", items)):
        numbers = pl.int_range(len(ids), dtype=pl.Int32, eager=True).alias(f"{name}_id")
        known = pl.DataFrame([ids, numbers]).lazy()
        coded = coded.join(known, on=name, how="inner").drop(name)
    wanted = ["user_id", "item_id", "timestamp", "row"]
    table = coded.select(wanted).collect(engine="streaming")
    return table.sort("user_id", "timestamp", "row").drop("row")


def _drop_duplicates(table: pl.DataFrame, duplicates: Duplicates) -> pl.DataFrame:
    if duplicates == "keep":
        return table
    same = ["user_id", "item_id"] + (["timestamp"] if duplicates == "event" else [])
    order = table.select(*same, pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"))
    order = order.sort([*same, "row"])  # the first of equal rows comes first
    again = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in same)
    first = order.filter(~again.fill_null(False))["row"].sort()
    return table if len(first) == len(table) else table[first]


def _core(users: NDArray[np.int32], items: NDArray[np.int32], k: int) -> NDArray[np.bool_]:
    """The rows that stay when users and items with fewer than k of them go, again and again."""
    keep, kept = np.ones(len(users), dtype=np.bool_), -1
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    while kept != (kept := int(keep.sum())):
        enough_users = np.bincount(users[keep], minlength=num_users) >= k
        enough_items = np.bincount(items[keep], minlength=num_items) >= k
        keep &= enough_users[users] & enough_items[items]
    return keep


def _renumber(table: pl.DataFrame, name: str, ids: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    there = np.zeros(len(ids), dtype=np.bool_)
    there[table[name].to_numpy()] = True
    numbers = (np.cumsum(there) - 1).astype(np.int32)
    column = pl.Series(name, numbers[table[name].to_numpy()])
    return ids.filter(pl.Series(there)), table.with_columns(column)
