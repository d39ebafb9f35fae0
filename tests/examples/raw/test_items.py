"""Descriptions in the order of the items."""

import polars as pl
import pytest

from cammsr.raw.items import LONGEST_TEXT, Description, align, clean, join_text


def test_rows_follow_the_items_and_unknown_ones_are_passed_over() -> None:
    described = [
        Description("b", " A &amp; B ", "x|y", ["x|y", "", "z", "z"], "words", "http://b"),
        Description("z", "nobody asked"),
        Description("b", "a second description"),
        Description("a", categories=["only"], text="  "),
    ]
    table, count = align(described, pl.Series(["a", "b", "c"]))
    assert count == 2
    assert table.rows() == [
        ("a", None, None, "only", None, None),
        ("b", "A & B", "x/y", "x/y|z", "words", "http://b"),
        ("c", None, None, None, None, None),
    ]
    assert set(table.dtypes) == {pl.String}


def test_nothing_described_is_a_table_of_nulls() -> None:
    table, count = align([], pl.Series(["a"]))
    assert (count, table.rows()) == (0, [("a", None, None, None, None, None)])


def test_a_category_without_labels_is_a_label() -> None:
    table, _ = align([Description("a", category="x")], pl.Series(["a"]))
    assert table["categories"].to_list() == ["x"]


def test_long_texts_are_cut() -> None:
    table, _ = align([Description("a", text="w" * 10_000)], pl.Series(["a"]))
    assert len(table["text"][0]) == LONGEST_TEXT


@pytest.mark.parametrize(
    ("value", "expected"), [(" a\n b ", "a b"), ("&quot;", '"'), ("", None), (3, None)]
)
def test_clean(value: object, expected: str | None) -> None:
    assert clean(value) == expected


def test_text_is_joined_once() -> None:
    assert join_text("Rug.", None, ["red", 3, "Rug"], "&lt;b&gt;") == "Rug. red. <b>"
