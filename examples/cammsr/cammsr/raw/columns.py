"""Interactions from any table of columns: checked in a stream, whatever the types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from cammsr.raw.faults import Faults
from cammsr.validate import DatasetError

__all__ = ["check_names", "check_rows", "identifier", "scan"]

PARQUET = (".parquet", ".pq")
ROUNDING = 1e-15  # of a product of floats
FAULTS: Mapping[str, str] = {
    "user": "is empty or not UTF-8",
    "item": "is empty or not UTF-8",
    "timestamp": "is not a whole number from 0 on; --timestamp_scale keeps fractions of a unit, "
    "--time_format reads dates",
}


def scan(path: str, *, separator: str = ",", header: bool = True) -> pl.LazyFrame:
    """A parquet or CSV file as a lazy table; every column of a CSV file is text for now."""
    try:
        if path.endswith(PARQUET):
            table = pl.scan_parquet(path)
        else:
            table = pl.scan_csv(
                path,
                separator=separator,
                has_header=header,
                infer_schema=False,
                encoding="utf8-lossy",
                truncate_ragged_lines=True,
            )
        names = table.collect_schema().names()
    except pl.exceptions.NoDataError as error:
        raise DatasetError(f"{path} is empty. Write one row for each interaction.") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    if header or path.endswith(PARQUET):
        return table
    return table.rename({name: f"column_{i}" for i, name in enumerate(names, start=1)})


def check_names(path: str, table: pl.LazyFrame, names: Iterable[str | None]) -> None:
    """Every named column must be there; the complaint lists those that are."""
    have = table.collect_schema().names()
    for name in names:
        if name is not None and name not in have:
            raise DatasetError(
                f"{path} has no column '{name}'. Its columns are: {', '.join(have) or 'none'}."
            )


def check_rows(
    table: pl.LazyFrame,
    columns: dict[str, str | None],
    faults: Faults,
    path: Path,
    *,
    scale: float = 1.0,
    time_format: str | None = None,
) -> pl.LazyFrame:
    """``user``, ``item``, ``timestamp`` of the rows that can be read, in the order of the file.

    Args:
        table: any columns.
        columns: the column for each of the three; no timestamp means the position in the file.
        faults: counts rows and faults; named after the file.
        path: where the rows are written, so that their text is parsed and checked only once.
        scale: what timestamps are multiplied with.
        time_format: how dates are written, where timestamps are text (``"%Y-%m-%d"``).
    """
    schema = table.collect_schema()
    named = {name: pl.col(column) for name, column in columns.items() if column is not None}
    raw = table.select(**named).with_row_index("row")
    user = identifier(schema[str(columns["user"])], "user")
    item = identifier(schema[str(columns["item"])], "item")
    why = dict(FAULTS)
    if columns["timestamp"] is None:
        time = pl.col("row").cast(pl.Int64)
    else:
        dtype = schema[columns["timestamp"]]
        time = _time(dtype, scale, time_format)
        if time_format is not None and dtype == pl.String:
            why["timestamp"] = f"is no date as --time_format {time_format!r} writes it"
    try:
        read = raw.with_columns(user, item, time.alias("timestamp")).with_columns(why=_why())
        read.sink_parquet(path, compression="lz4")
        read = pl.scan_parquet(path)
        _count(raw, read, faults, why)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(faults.source, error) from error
    return read.filter(pl.col("why").is_null()).drop("row", "why")


def identifier(dtype: pl.DataType, name: str) -> pl.Expr:
    """Text; null where it is empty. A whole number is written without a fraction."""
    column = pl.col(name)
    if dtype.is_float():
        whole = pl.when(column.floor() == column).then(column)
        return whole.cast(pl.Int64, strict=False).cast(pl.String).alias(name)
    if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise DatasetError(f"Expected column '{name}' to hold text or integers, got {dtype}.")
    text = column.cast(pl.String).str.strip_chars()
    good = (text != "") & ~text.str.contains("[\ufffd\r\n]")  # stray quotes swallow lines
    return pl.when(good).then(text).alias(name)


def _time(dtype: pl.DataType, scale: float, time_format: str | None) -> pl.Expr:
    """Whole numbers from 0 on, or null."""
    column = pl.col("timestamp")
    if dtype.is_temporal():
        value = column.cast(pl.Datetime("us"), strict=False).dt.epoch("us")
    elif time_format is not None and dtype == pl.String:
        date = column.str.to_datetime(time_format, time_unit="us", strict=False)
        value = date.dt.epoch("us")
    elif dtype == pl.String or dtype.is_numeric():
        text = column.str.strip_chars() if dtype == pl.String else column
        decimal = text.cast(pl.Float64, strict=False) * scale
        nearest = decimal if scale == 1 else decimal.round()
        near = (decimal - nearest).abs() <= ROUNDING * decimal.abs()  # 1.09 * 100 is not 109
        good = near & (nearest.floor() == nearest)
        whole = pl.when(good).then(nearest).cast(pl.Int64, strict=False)
        exact = scale == 1 and (dtype.is_integer() or dtype == pl.String)
        value = pl.coalesce(text.cast(pl.Int64, strict=False), whole) if exact else whole
    else:
        raise DatasetError(f"Expected column 'timestamp' to hold times or numbers, got {dtype}.")
    return pl.when(value >= 0).then(value)


def _why() -> pl.Expr:
    """The first of the three that cannot be read."""
    null = [pl.when(pl.col(name).is_null()).then(pl.lit(name)) for name in FAULTS]
    return pl.coalesce(null)


def _count(
    raw: pl.LazyFrame, read: pl.LazyFrame, faults: Faults, said_of: Mapping[str, str]
) -> None:
    counted = read.group_by("why").agg(pl.len(), pl.col("row").min())
    found = counted.collect(engine="streaming").sort("row")
    faults.seen += int(found["len"].sum())
    if faults.seen == 0:
        raise DatasetError(f"{faults.source} has no rows. Write one row for each interaction.")
    for why, count, row in found.filter(pl.col("why").is_not_null()).iter_rows():
        value = raw.filter(pl.col("row") == row).select(why).collect(engine="streaming").item()
        said = f"{why} {value!r} {said_of[why]}"
        faults.add(row + 1, f"{said} ({count:,} rows)" if count > 1 else said, count)
    faults.check()


def _unreadable(path: str, error: Exception) -> DatasetError:
    said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return DatasetError(f"{path} cannot be read as a table ({said}).")
