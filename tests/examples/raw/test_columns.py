"""Interactions from columns of every type."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest

from cammsr.raw.columns import check_names, check_rows, scan
from cammsr.raw.faults import Faults
from cammsr.validate import DatasetError

NAMES: dict[str, str | None] = {"user": "user", "item": "item", "timestamp": "timestamp"}


def read(table: pl.LazyFrame, limit: float = 1.0, **options: Any) -> tuple[list[Any], Faults]:
    faults = Faults("rows.csv", limit, "row")
    columns = options.pop("columns", NAMES)
    with TemporaryDirectory() as folder:
        rows = check_rows(table, columns, faults, Path(folder) / "rows.parquet", **options)
        return check_types(rows).rows(), faults


def check_types(rows: pl.LazyFrame) -> pl.DataFrame:
    assert rows.collect_schema() == {
        "user": pl.String,
        "item": pl.String,
        "timestamp": pl.Int64,
    }
    return rows.collect()


def csv(tmp_path: Path, text: str | bytes, **options: Any) -> pl.LazyFrame:
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return scan(str(path), **options)


def times(values: list[Any], **options: Any) -> tuple[list[int], Faults]:
    table = pl.LazyFrame({"user": ["u"] * len(values), "item": "i", "timestamp": values})
    rows, faults = read(table, **options)
    return [row[2] for row in rows], faults


def test_an_identifier_of_two_lines_is_a_fault(tmp_path: Path) -> None:
    text = 'user,item,timestamp\na,"12 inch,1\nb,x,2\nc,7 inch",3\nd,y,4\n'
    rows, faults = read(csv(tmp_path, text))
    assert rows == [("d", "y", 4)]
    assert faults.count == 1


def test_scaled_decimals_are_whole_but_for_their_rounding() -> None:
    assert times([1.09, 1024.351, 1600000000.123, 0.0004], scale=1000)[0] == [
        1090,
        1024351,
        1600000000123,
    ]
    assert times([1.09], scale=100)[0] == [109]
    assert times([1.5, 2.0], scale=1)[0] == [2]


def test_reads_text_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows, faults = read(csv(tmp_path, "x,item,user,timestamp\n,007, b ,20\n,i,a,10\n"))
    assert rows == [("b", "007", 20), ("a", "i", 10)]
    assert (faults.seen, faults.count) == (2, 0)


def test_rows_that_cannot_be_read_are_counted_with_the_first_of_each_kind(tmp_path: Path) -> None:
    text = b"user,item,timestamp\na,x,1\n,x,2\na,,3\na,\xff,4\na,x,soon\na,x,-1\na,x,\na,x\na,x,9\n"
    rows, faults = read(csv(tmp_path, text))
    assert rows == [("a", "x", 1), ("a", "x", 9)]
    assert (faults.seen, faults.count) == (9, 7)
    assert [fault.split(" is ")[0] for fault in faults.first] == [
        "row 2: user None",
        "row 3: item None",
        "row 5: timestamp 'soon'",
    ]
    assert "(2 rows)" in faults.first[1]
    assert "(4 rows)" in faults.first[2]


def test_too_many_of_them_are_refused(tmp_path: Path) -> None:
    table = csv(tmp_path, "user,item,timestamp\na,x,1\na,x,soon\n")
    with pytest.raises(DatasetError, match=r"rows.csv: 1 of 2 rows .*'soon' is not a whole number"):
        read(table, 0.1)


def test_a_date_of_another_form_names_the_form(tmp_path: Path) -> None:
    table = csv(tmp_path, "user,item,timestamp\na,x,2024-08-04\n")
    message = r"'2024-08-04' is no date as --time_format '%d\.%m\.%Y' writes it"
    with pytest.raises(DatasetError, match=message):
        read(table, 0.1, time_format="%d.%m.%Y")


def test_times_are_whole_numbers_from_zero_on() -> None:
    assert times([1.0, 2.5, float("nan"), float("inf"), -1.0, None, 3e9])[0] == [1, 3_000_000_000]
    assert times([0, 2**60, -5, None])[0] == [0, 2**60]
    assert times([Decimal("1.5"), Decimal("2.0")])[0] == [2]
    assert times(["7", "1.6e9", " 8 ", str(2**60 + 1)])[0] == [7, 1_600_000_000, 8, 2**60 + 1]


def test_a_scale_keeps_fractions() -> None:
    assert times(["1.5", "2"], scale=1000)[0] == [1500, 2000]
    assert times([1.25], scale=10)[1].count == 1


def test_dates_become_microseconds() -> None:
    second = 1_577_836_801
    date = datetime(2020, 1, 1, 0, 0, 1)
    assert times([date, None])[0] == [second * 10**6]
    assert times([date.replace(tzinfo=UTC)])[0] == [second * 10**6]
    assert times([date.date()])[0] == [(second - 1) * 10**6]
    read, faults = times(["2020-01-01 00:00:01", "soon"], time_format="%Y-%m-%d %H:%M:%S")
    assert (read, faults.count) == ([second * 10**6], 1)


def test_without_times_the_position_counts() -> None:
    table = pl.LazyFrame({"user": ["b", "a"], "item": ["i", "j"]})
    rows, _ = read(table, columns={"user": "user", "item": "item", "timestamp": None})
    assert rows == [("b", "i", 0), ("a", "j", 1)]


def test_identifiers_may_be_numbers() -> None:
    table = pl.LazyFrame({"user": [7, 8], "item": [1.0, None], "timestamp": [1, 2]})
    rows, faults = read(table)
    assert (rows, faults.count) == ([("7", "1", 1)], 1)


def test_columns_may_have_any_name() -> None:
    table = pl.LazyFrame({"row": ["a"], "user": ["i"], "why": [1]})
    columns: dict[str, str | None] = {"user": "row", "item": "user", "timestamp": "why"}
    assert read(table, columns=columns)[0] == [("a", "i", 1)]


def test_one_column_may_be_read_twice() -> None:
    table = pl.LazyFrame({"user": ["a"], "when": [3]})
    rows, _ = read(table, columns={"user": "user", "item": "user", "timestamp": "when"})
    assert rows == [("a", "a", 3)]


@pytest.mark.parametrize("name", ["user", "timestamp"])
def test_other_types_are_refused(name: str) -> None:
    table = pl.LazyFrame({"user": ["a"], "item": ["i"], "timestamp": [1], name: [[1]]})
    with pytest.raises(DatasetError, match=rf"Expected column '{name}' to hold .*, got List"):
        read(table)


def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    table = csv(tmp_path, "user,sku\na,b\n")
    with pytest.raises(DatasetError, match=r"r.csv has no column 'item'. .* are: user, sku\."):
        check_names("r.csv", table, ["user", None, "item"])


def test_separators_and_headers(tmp_path: Path) -> None:
    table = csv(tmp_path, "a\tb\t3\n", separator="\t", header=False)
    names: dict[str, str | None] = {"user": "column_1", "item": "column_2", "timestamp": "column_3"}
    assert read(table, columns=names)[0] == [("a", "b", 3)]


def test_quoted_cells(tmp_path: Path) -> None:
    rows, _ = read(csv(tmp_path, 'user,item,timestamp\n"a, b","c""d",3\n'))
    assert rows == [("a, b", 'c"d', 3)]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"rows.csv is empty"):
        csv(tmp_path, "")
    with pytest.raises(DatasetError, match=r"rows.csv has no rows"):
        read(csv(tmp_path, "user,item,timestamp\n"))


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DatasetError, match=r"rows.parquet cannot be read as a table"):
        scan(str(path))


def test_many_rows_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Enough of them for several pieces and threads."""
    count = 200_000
    lines = "".join(f"u{i},i,{i * 7919 % 1000}\n" for i in range(count))
    rows, _ = read(csv(tmp_path, "user,item,timestamp\n" + lines))
    assert [user for user, _, _ in rows] == [f"u{i}" for i in range(count)]
