"""Amazon reviews of 2023: the raw files of reviews and metadata, local or from the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cammsr.raw.amazon import check_settings, read_reviews
from cammsr.raw.download import fetch_from_hub
from cammsr.raw.faults import Faults
from cammsr.raw.items import Description, join_text
from cammsr.raw.lines import Lines, read_lines
from cammsr.raw.source import Work

__all__ = ["Amazon2023"]

REPOSITORY = "McAuley-Lab/Amazon-Reviews-2023"
SIZES = ("large", "hi_res", "thumb")  # of an image, the best for an encoder of 224 pixels first


@dataclass(frozen=True)
class Amazon2023:
    """Amazon reviews of 2023. An item is a parent_asin: its colours and sizes are one.

    Args:
        category: The name that the files carry, for example All_Beauty or Toys_and_Games;
            what is not given as a file is downloaded.
        reviews: File or URL of <category>.jsonl, plain or gzipped.
        meta: File or URL of meta_<category>.jsonl, plain or gzipped.
        revision: Of the data set on the hub: a branch or, to fix it, a commit.
        category_level: Which level of an item's path is its category; 0 is the same for most.
    """

    category: str | None = None
    reviews: str | None = None
    meta: str | None = None
    revision: str = "main"
    category_level: int = 1

    def __post_init__(self) -> None:
        """Refuse what no file can be found for."""
        check_settings(self.category, self.reviews, self.meta, self.category_level)

    def interactions(self, work: Work) -> pl.LazyFrame:
        """The reviews: who wrote about what, and when (milliseconds)."""
        self._meta(work)  # before hours of reading
        path = self._file(work, self.reviews, f"raw/review_categories/{self.category}.jsonl")
        return read_reviews(path, _reviews, work)

    def describe(self, items: pl.Series, work: Work) -> pl.DataFrame:
        """Title, store, categories, features, description and image URL of the metadata."""
        path = self._meta(work)
        faults = work.faults(path.name)
        lines = read_lines(path, faults, say=work.say)
        return work.align(_metadata(lines, faults, self.category_level), items, faults)

    @property
    def published_images(self) -> None:
        """None are published."""

    def note(self) -> dict[str, Any]:
        """The settings above."""
        return asdict(self)

    def _meta(self, work: Work) -> Path:
        return self._file(work, self.meta, f"raw/meta_categories/meta_{self.category}.jsonl")

    def _file(self, work: Work, given: str | None, name: str) -> Path:
        if given is not None:
            return work.fetch(given)
        cache = work.cache / "hub"
        return fetch_from_hub(
            REPOSITORY, name, revision=self.revision, cache=cache, offline=work.offline
        )


def _reviews(lines: Lines, faults: Faults) -> Iterator[tuple[str, str, int]]:
    for number, line in lines:
        user, item = line.get("user_id"), line.get("parent_asin") or line.get("asin")
        time = line.get("timestamp", line.get("sort_timestamp"))
        if not (isinstance(user, str) and user.strip() and isinstance(item, str) and item.strip()):
            faults.add(number, f"user_id {user!r} and parent_asin {item!r} must be text")
        elif not isinstance(time, int) or isinstance(time, bool) or time < 0:
            faults.add(number, f"timestamp {time!r} must be a whole number from 0 on")
        else:
            yield user.strip(), item.strip(), time


def _metadata(lines: Lines, faults: Faults, level: int) -> Iterator[Description]:
    for number, line in lines:
        item = line.get("parent_asin") or line.get("asin")
        if not isinstance(item, str) or not item.strip():
            faults.add(number, f"parent_asin {item!r} must be text")
            continue
        given = line.get("categories")
        labels = [x for x in given if isinstance(x, str)] if isinstance(given, list) else []
        labels = labels[level:]
        title = line.get("title")
        told = (line.get("store"), labels, line.get("features"), line.get("description"))
        yield Description(
            item.strip(),
            title,
            labels[0] if labels else None,
            labels,
            join_text(title, *told),
            _image(line.get("images")),
        )


def _image(images: Any) -> str | None:
    """The URL of the main image, or of the first one."""
    given = images if isinstance(images, list) else []
    known = [one for one in given if isinstance(one, dict)]
    known.sort(key=lambda one: one.get("variant") != "MAIN")  # stable: the others keep their order
    urls = (one.get(size) for one in known for size in SIZES)
    return next((url for url in urls if isinstance(url, str) and url), None)
