"""Amazon product data of 2014: reviews, metadata and published image features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cammsr.raw.amazon import check_settings, read_reviews
from cammsr.raw.faults import Faults
from cammsr.raw.items import Description, join_text
from cammsr.raw.lines import Lines, read_lines
from cammsr.raw.source import Work
from cammsr.validate import DatasetError

__all__ = ["CATEGORIES", "Amazon2014"]

SITE = "http://snap.stanford.edu/data/amazon/productGraph"
#: short names of the categories that papers of this field use
CATEGORIES: Mapping[str, str] = {
    "Toys": "Toys_and_Games",
    "Games": "Video_Games",
    "Beauty": "Beauty",
    "Home": "Home_and_Kitchen",
    "Baby": "Baby",
    "Sports": "Sports_and_Outdoors",
}


@dataclass(frozen=True)
class Amazon2014:
    """Amazon product data of 2014.

    Args:
        category: Toys, Games, Beauty, Home, Baby, Sports, or the name that the files carry;
            what is not given as a file is downloaded.
        reviews: File or URL of reviews_*_5.json.gz.
        meta: File or URL of meta_*.json.gz.
        image_features_file: File or URL of image_features_*.b, or "download".
        category_level: Which level of an item's first path is its category; 0 is the same for all.
    """

    category: str | None = None
    reviews: str | None = None
    meta: str | None = None
    image_features_file: str | None = None
    category_level: int = 1

    def __post_init__(self) -> None:
        """Refuse what no file can be found for."""
        check_settings(self.category, self.reviews, self.meta, self.category_level)

    def interactions(self, work: Work) -> pl.LazyFrame:
        """The reviews: who wrote about what, and when (seconds)."""
        self._meta(work)  # before hours of reading
        path = work.fetch(self.reviews or self._url("categoryFiles/reviews_{}_5.json.gz"))
        return read_reviews(path, _reviews, work)

    def describe(self, items: pl.Series, work: Work) -> pl.DataFrame:
        """Title, brand, category paths, description and image URL of the metadata."""
        path = self._meta(work)
        faults = work.faults(path.name)
        lines = read_lines(path, faults, literals=True, say=work.say)
        return work.align(_metadata(lines, faults, self.category_level), items, faults)

    @property
    def published_images(self) -> str | None:
        """The published features, where they are asked for."""
        if self.image_features_file == "download":
            return self._url("image_features/categoryFiles/image_features_{}.b")
        return self.image_features_file

    def note(self) -> dict[str, Any]:
        """The settings above."""
        return asdict(self)

    def _meta(self, work: Work) -> Path:
        return work.fetch(self.meta or self._url("categoryFiles/meta_{}.json.gz"))

    def _url(self, path: str) -> str:
        if self.category is None:
            raise DatasetError(f"Downloading {path} needs --category.")
        return f"{SITE}/{path.format(CATEGORIES.get(self.category, self.category))}"


def _reviews(lines: Lines, faults: Faults) -> Iterator[tuple[str, str, int]]:
    for number, line in lines:
        user, item, time = (line.get(k) for k in ("reviewerID", "asin", "unixReviewTime"))
        if not (isinstance(user, str) and user.strip() and isinstance(item, str) and item.strip()):
            faults.add(number, f"reviewerID {user!r} and asin {item!r} must be text")
        elif not isinstance(time, int) or isinstance(time, bool) or time < 0:
            faults.add(number, f"unixReviewTime {time!r} must be a whole number from 0 on")
        else:
            yield user.strip(), item.strip(), time


def _metadata(lines: Lines, faults: Faults, level: int) -> Iterator[Description]:
    for number, line in lines:
        item = line.get("asin")
        if not isinstance(item, str) or not item.strip():
            faults.add(number, f"asin {item!r} must be text")
            continue
        paths = _paths(line.get("categories"))
        category = paths[0][level] if paths and len(paths[0]) > level else None
        labels = [label for one in paths for label in one[level:]]
        title = line.get("title")
        text = join_text(title, line.get("brand"), labels, line.get("description"))
        image = line.get("imUrl")
        image = image if isinstance(image, str) else None
        yield Description(item.strip(), title, category, labels, text, image)


def _paths(value: Any) -> list[list[str]]:
    """The category paths: lists of text in a list."""
    paths = value if isinstance(value, list) else []
    return [[x for x in one if isinstance(x, str)] for one in paths if isinstance(one, list)]
