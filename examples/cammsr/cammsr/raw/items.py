"""What is known of the items, brought into their order."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

__all__ = ["SCHEMA", "Description", "align", "clean", "join_text"]

#: item -> its raw identifier; image -> a URL or a file; all text, null where nothing is known
SCHEMA: Mapping[str, type[pl.String]] = dict.fromkeys(
    ("item", "title", "category", "categories", "text", "image"), pl.String
)

LONGEST_TEXT = 4000  # characters; encoders read 512 tokens at most, about half of that


class Description(NamedTuple):
    """What a source says of one item."""

    item: str
    title: str | None = None
    category: str | None = None
    categories: Sequence[str] = ()
    text: str | None = None
    image: str | None = None


def align(descriptions: Iterable[Description], items: pl.Series) -> tuple[pl.DataFrame, int]:
    """One row for each item, in this order, and how many of them were described.

    Items that are not asked for are passed over, so that memory is bounded by the items that are.
    The first description of an item counts.
    """
    place = {item: i for i, item in enumerate(items.to_list())}
    rows: list[tuple[str | None, ...] | None] = [None] * len(place)
    described = 0
    for one in descriptions:
        row = place.get(one.item)
        if row is None or rows[row] is not None:
            continue
        described += 1
        labels = dict.fromkeys(label for label in map(_label, one.categories) if label)
        category = _label(one.category)
        rows[row] = (
            clean(one.title),
            category,
            "|".join(labels) or category,
            (one.text or "").strip()[:LONGEST_TEXT] or None,
            (one.image or "").strip() or None,
        )
    columns = list(zip(*(row or (None,) * (len(SCHEMA) - 1) for row in rows), strict=True))
    names = list(SCHEMA)[1:]
    known = dict(zip(names, columns or [()] * len(names), strict=True))
    table = pl.DataFrame({"item": items, **known}, schema=SCHEMA)
    return table, described


def clean(value: Any) -> str | None:
    """Text without HTML entities and double spaces; None if nothing is left, or if it is no text.

    >>> clean(" Toys &amp;  Games ")
    'Toys & Games'
    """
    if not isinstance(value, str):
        return None
    return " ".join(html.unescape(value).split()) or None


def join_text(*parts: Any) -> str:
    """The parts that are text, or lists of it, as sentences, none of them twice.

    >>> join_text("Rug", None, ["Red", "Rug"])
    'Rug. Red'
    """
    flat: list[str | None] = []
    for part in parts:
        flat += [clean(one) for one in part] if isinstance(part, list | tuple) else [clean(part)]
    return ". ".join(dict.fromkeys(text.rstrip(".") for text in flat if text))


def _label(value: Any) -> str | None:
    """A label may not hold the sign that joins labels."""
    text = clean(value)
    return text.replace("|", "/") if text else None
