"""Any table by a map of its columns."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from cammsr.raw.source import Work
from cammsr.raw.table import InteractionColumns, ItemColumns, Table
from cammsr.validate import DatasetError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_columns_are_mapped(write: Callable[..., str], work: Work, said: list[str]) -> None:
    path = write("log.tsv", "when\twho\twhat\n3\tann\trug\n1\tbob\t\n")
    columns = InteractionColumns(user="who", item="what", timestamp="when")
    table = Table(path, columns, separator="tab")
    assert table.interactions(work).collect().rows() == [("ann", "rug", 3)]
    assert said[0].startswith(f"{path}: 2 rows, 1 dropped as unreadable (row 2: item None")


def test_a_column_that_is_not_there_is_named(write: Callable[..., str], work: Work) -> None:
    path = write("log.csv", "user,sku,timestamp\na,b,1\n")
    message = r"log.csv has no column 'item'. Its columns are: user, sku, timestamp"
    with pytest.raises(DatasetError, match=message):
        Table(path).interactions(work)
    with pytest.raises(DatasetError, match=r"log.csv has no column 'name'"):
        Table(path, items_file=path, item_columns=ItemColumns("sku", "name")).describe(
            pl.Series(["b"]), work
        )


def test_what_is_wrong_with_the_items_is_said_before_the_rows_are_read(
    write: Callable[..., str], work: Work
) -> None:
    log = write("log.csv", "user,item,timestamp\na,b,much\n")
    items = write("items.csv", "item,kind\nb,light\n")
    with pytest.raises(DatasetError, match=r"items.csv has no column 'name'"):
        Table(log, items_file=items, item_columns=ItemColumns(title="name")).interactions(work)
    with pytest.raises(DatasetError, match=r"Expected item_columns.title.* are: item, kind\."):
        Table(log, items_file=items).interactions(work)
    lines = write("items.jsonl", '{"item": "b", "kind": "light"}\n')
    with pytest.raises(DatasetError, match=r"Expected a CSV or parquet file, got .*items.jsonl"):
        Table(log, items_file=lines).interactions(work)


def test_items_are_described(write: Callable[..., str], work: Work, tmp_path: Path) -> None:
    path = write(
        "items.csv",
        "sku,name,kind,tags,photo\n 2 ,Lamp,light,a;b,http://x/2.png\n1,,,,rug.png\n3,Car,,,\n",
    )
    columns = ItemColumns("sku", "name", "kind", "tags", image="photo")
    table = Table("", items_file=path, item_columns=columns, label_separator=";")
    assert table.describe(pl.Series(["1", "2", "4"]), work).rows() == [
        ("1", None, None, None, None, str(tmp_path / "rug.png")),
        ("2", "Lamp", "light", "a|b", "Lamp. a. b. light", "http://x/2.png"),
        ("4", None, None, None, None, None),
    ]


def test_lists_of_labels_and_float_identifiers(work: Work, tmp_path: Path) -> None:
    path = str(tmp_path / "items.parquet")
    pl.DataFrame({"item": [7.0, None], "tags": [["a", "b"], ["c"]]}).write_parquet(path)
    columns = ItemColumns(categories="tags")
    table = Table("", items_file=path, item_columns=columns, label_separator=";")
    assert table.describe(pl.Series(["7"]), work).rows() == [("7", None, None, "a|b", "a. b", None)]


def test_text_may_come_from_chosen_columns(write: Callable[..., str], work: Work) -> None:
    path = write("items.csv", "item,name,story\n1,Rug,Long ago\n")
    columns = ItemColumns(title="name", text=["story", "name"])
    described = Table("", items_file=path, item_columns=columns).describe(pl.Series(["1"]), work)
    assert described["text"].to_list() == ["Long ago. Rug"]


def test_parquet_keeps_its_types(work: Work, tmp_path: Path) -> None:
    pl.DataFrame({"user": [7], "item": [9], "timestamp": [5]}).write_parquet(tmp_path / "a.parquet")
    items = {"item": [9, 8], "tags": [["x", None, "y"], None]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    table = Table(
        str(tmp_path / "a.parquet"),
        items_file=str(tmp_path / "items.parquet"),
        item_columns=ItemColumns(categories="tags"),
    )
    assert table.interactions(work).collect().rows() == [("7", "9", 5)]
    assert table.describe(pl.Series(["8", "9"]), work)["categories"].to_list() == [None, "x|y"]


def test_without_items_nothing_is_known(work: Work, said: list[str]) -> None:
    described = Table("").describe(pl.Series(["a"]), work)
    assert described.rows() == [("a", None, None, None, None, None)]
    assert said == ["no --items_file: titles and categories are unknown"]
