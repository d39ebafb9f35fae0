"""Amazon 2023: raw reviews and metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cammsr.raw import amazon2023
from cammsr.raw.amazon2023 import Amazon2023
from cammsr.raw.source import Work
from cammsr.validate import DatasetError


@pytest.mark.parametrize("name", ["All_Beauty.jsonl", "All_Beauty.jsonl.gz"])
def test_reviews(name: str, write_lines: Callable[..., Path], work: Work, said: list[str]) -> None:
    lines = (
        {"user_id": "U2", "asin": "C1", "parent_asin": "P1", "timestamp": 1600000000123},
        {"user_id": "U1", "asin": "C2", "timestamp": 5},
        {"user_id": "", "parent_asin": "P1", "timestamp": 5},
        {"user_id": "U1", "parent_asin": "P1", "timestamp": 5.5},
    )
    path = write_lines(name, *lines)
    rows = Amazon2023(reviews=str(path), meta=str(path)).interactions(work).collect().rows()
    assert rows == [("U2", "P1", 1600000000123), ("U1", "C2", 5)]
    assert "4 lines, 2 dropped as unreadable (line 3: user_id '' and parent_asin 'P1'" in said[0]
    assert "line 4: timestamp 5.5 must be" in said[0]


def test_metadata(write_lines: Callable[..., Path], work: Work) -> None:
    images = [
        {"variant": "PT01", "large": "http://x/side.jpg"},
        {"variant": "MAIN", "hi_res": "http://x/big.jpg", "large": None},
    ]
    lines: tuple[dict[str, Any], ...] = (
        {
            "parent_asin": "P1",
            "title": "Soap",
            "store": "Acme",
            "categories": ["Beauty", "Bath", "Soap"],
            "features": ["mild"],
            "description": ["For hands.", "Soap"],
            "images": images,
        },
        {"parent_asin": "P2", "title": None, "categories": [], "images": []},
        {"asin": 3},
    )
    path = write_lines("meta_All_Beauty.jsonl", *lines)
    source = Amazon2023(reviews="-", meta=str(path))
    assert source.describe(pl.Series(["P1", "P2"]), work).rows() == [
        (
            "P1",
            "Soap",
            "Bath",
            "Bath|Soap",
            "Soap. Acme. Bath. mild. For hands",
            "http://x/big.jpg",
        ),
        ("P2", None, None, None, None, None),
    ]


def test_what_is_not_given_comes_from_the_hub(
    write_lines: Callable[..., Path], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines("x.jsonl", {"user_id": "U", "parent_asin": "P", "timestamp": 5})
    asked: list[Any] = []

    def fetch(*names: str, **options: Any) -> Path:
        asked.append((*names, options["revision"], options["offline"]))
        return path

    monkeypatch.setattr(amazon2023, "fetch_from_hub", fetch)
    source = Amazon2023("Baby_Products", revision="abc")
    assert source.interactions(work).collect().rows() == [("U", "P", 5)]
    assert source.describe(pl.Series(["P"]), work)["title"].to_list() == [None]
    repository = "McAuley-Lab/Amazon-Reviews-2023"
    reviews = (repository, "raw/review_categories/Baby_Products.jsonl", "abc", False)
    meta = (repository, "raw/meta_categories/meta_Baby_Products.jsonl", "abc", False)
    assert asked == [meta, reviews, meta], "both are there before hours of reading"


def test_files_or_a_category_are_needed() -> None:
    with pytest.raises(DatasetError, match=r"Expected --category, or both --reviews and --meta"):
        Amazon2023(meta="a")
    with pytest.raises(DatasetError, match=r"category_level >= 0, got -2"):
        Amazon2023("All_Beauty", category_level=-2)
