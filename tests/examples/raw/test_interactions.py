"""Numbering, sorting, duplicates and the k-core."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cammsr.dataset import Dataset, k_core
from cammsr.raw.interactions import Duplicates, number, spool
from cammsr.validate import DatasetError

Row = tuple[str, str, int]


def frame(*rows: Row) -> pl.LazyFrame:
    schema = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64}
    return pl.LazyFrame(rows, schema=schema, orient="row")


def naive(rows: list[Row], duplicates: Duplicates) -> list[Row]:
    """Read aloud from the documentation, in raw identifiers."""
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))  # stable: ties keep the file's order
    seen: set[tuple[str | int, ...]] = set()
    kept = []
    for row in ordered:
        key = row if duplicates == "event" else row[:2]
        if duplicates == "keep" or key not in seen:
            kept.append(row)
        seen.add(key)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("zyx"), st.sampled_from("cab"), st.integers(0, 2)), min_size=1
    ),
    duplicates=st.sampled_from(["event", "item", "keep"]),
)
def test_equals_the_naive_reading(rows: list[Row], duplicates: Duplicates) -> None:
    found = number(frame(*rows), duplicates=duplicates)
    assert found.users.to_list() == sorted({user for user, _, _ in rows})
    assert found.items.to_list() == sorted({item for _, item, _ in rows})
    named = [(found.users[u], found.items[i], t) for u, i, t in found.rows.rows()]
    assert named == naive(rows, duplicates)
    assert found.read == len(rows) == len(found.rows) + found.duplicates


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("zyxwv"), st.sampled_from("cabde"), st.integers(0, 9)),
        min_size=20,
        max_size=60,
    )
)
def test_the_core_is_that_of_the_recommender(rows: list[Row]) -> None:
    plain = number(frame(*rows), duplicates="keep")
    columns = [torch.tensor(plain.rows[name].to_list()) for name in plain.rows.columns]
    size = len(plain.items)
    whole = Dataset(
        "x", *columns, {}, (), torch.zeros(size, 0), torch.zeros(size), tuple(plain.items)
    )
    try:
        expected = k_core(whole, 3)
    except DatasetError:
        with pytest.raises(DatasetError, match=r"3-core is empty"):
            number(frame(*rows), duplicates="keep", k_core=3)
        return
    found = number(frame(*rows), duplicates="keep", k_core=3)
    assert found.rows["user_id"].to_list() == expected.user_ids.tolist()
    assert found.rows["item_id"].to_list() == expected.item_ids.tolist()
    assert found.rows["timestamp"].to_list() == expected.timestamps.tolist()
    assert tuple(found.items) == expected.titles
    assert found.thinned == len(rows) - len(found.rows)


def test_many_rows_with_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Enough rows for several row groups and threads."""
    count, users = 300_000, 7
    rows = ((f"u{i % users}", f"i{(i * 7919) % 1000:03}", 5) for i in range(count))
    found = number(spool(rows, tmp_path / "rows.parquet"), duplicates="keep")
    expected = [(i * 7919) % 1000 for u in range(users) for i in range(u, count, users)]
    assert found.rows["item_id"].to_list() == expected


def test_spooled_rows_come_back(tmp_path: Path) -> None:
    rows = [("ü", "b", 2), ("a", "b", 1)]
    assert spool(iter(rows), tmp_path / "x").collect().rows() == rows


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"There are no interactions"):
        number(spool([], tmp_path / "x"))


def test_types_are_small() -> None:
    found = number(frame(("a", "b", 2**40)))
    assert Counter(map(str, found.rows.dtypes)) == {"Int32": 2, "Int64": 1}
