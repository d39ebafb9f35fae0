"""Amazon 2014: reviews as JSON, metadata as Python literals."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from cammsr.raw.amazon2014 import CATEGORIES, Amazon2014
from cammsr.raw.source import Work
from cammsr.validate import DatasetError


def review(user: object, item: object, time: object) -> dict[str, object]:
    return {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": time}


def test_reviews(write_lines: Callable[..., Path], work: Work, said: list[str]) -> None:
    lines = (
        review("A2", "B1", 20),
        review("A1", "B1", 10),
        b'{"reviewerID": "A1", "asin"',
        review("A1", None, 10),
        review("A1", "B1", "10"),
        review("A1", "B1", -1),
    )
    path = write_lines("reviews_Toys_5.json.gz", *lines, *([review("A3", "B2", 1)] * 4))
    source = Amazon2014(reviews=str(path), meta=str(path))
    rows = source.interactions(work).collect().rows()
    assert rows == [("A2", "B1", 20), ("A1", "B1", 10), *([("A3", "B2", 1)] * 4)]
    assert said[0].startswith("reviews_Toys_5.json.gz: 10 lines, 4 dropped as unreadable (line 3: ")
    assert "line 4: reviewerID 'A1' and asin None must be text" in said[0]
    assert "line 5: unixReviewTime '10' must be a whole number" in said[0]


def test_too_many_corrupt_lines_are_refused(write_lines: Callable[..., Path], work: Work) -> None:
    path = write_lines("reviews.json.gz", review("A1", "B1", 10), b"{", b"{")
    with pytest.raises(DatasetError, match=r"reviews.json.gz: 2 of 3 lines"):
        Amazon2014(reviews=str(path), meta=str(path)).interactions(work)


@pytest.mark.parametrize("literal", [True, False])
def test_metadata(
    literal: bool, write_lines: Callable[..., Path], work: Work, said: list[str]
) -> None:
    lines = (
        {
            "asin": "B1",
            "title": "Kid's &amp; Co",
            "brand": "Acme",
            "categories": [["Toys", "Games", "Dice"], ["Toys", "Gifts"]],
            "description": "For two.",
            "imUrl": "http://x/1.jpg",
        },
        {"asin": "B9", "title": "nobody bought it"},
        {"asin": "B2", "categories": [["Toys"]], "price": 3},
        {"title": "no asin"},
    )
    path = write_lines("meta_Toys.json.gz", *lines, literal=literal)
    described = Amazon2014(reviews="-", meta=str(path)).describe(pl.Series(["B1", "B2"]), work)
    assert described.rows() == [
        (
            "B1",
            "Kid's & Co",
            "Games",
            "Games|Dice|Gifts",
            "Kid's & Co. Acme. Games. Dice. Gifts. For two",
            "http://x/1.jpg",
        ),
        ("B2", None, None, None, None, None),
    ]
    assert "4 lines, 1 dropped as unreadable (line 4: asin None must be text)" in said[0]
    assert said[0].endswith("2 of 2 items described")


def test_the_level_of_the_category(write_lines: Callable[..., Path], work: Work) -> None:
    path = write_lines("meta.json", {"asin": "B1", "categories": [["Toys", "Games", "Dice"]]})
    for level, expected in ((0, "Toys"), (2, "Dice"), (3, None)):
        source = Amazon2014(reviews="-", meta=str(path), category_level=level)
        assert source.describe(pl.Series(["B1"]), work)["category"].to_list() == [expected]


def test_addresses() -> None:
    source = Amazon2014(category="Home", image_features_file="download")
    assert str(source.published_images).endswith("/image_features_Home_and_Kitchen.b")
    source = Amazon2014(category="Books", image_features_file="my.b")
    assert source.published_images == "my.b"
    assert list(CATEGORIES) == ["Toys", "Games", "Beauty", "Home", "Baby", "Sports"]


def test_files_or_a_category_are_needed() -> None:
    with pytest.raises(DatasetError, match=r"Expected --category, or both --reviews and --meta"):
        Amazon2014(reviews="a")
    with pytest.raises(DatasetError, match=r"category_level >= 0, got -1"):
        Amazon2014(category="Toys", category_level=-1)
    with pytest.raises(DatasetError, match=r"needs --category"):
        _ = Amazon2014(reviews="a", meta="b", image_features_file="download").published_images
