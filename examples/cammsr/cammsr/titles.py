"""Items by what a person types: ids of the dataset folder, raw identifiers, or parts of titles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from operator import index

from cammsr.raw_names import RAW
from cammsr.saved import Catalogue, ServingError

__all__ = ["WIDEST", "cut", "find_title", "number_or_text", "resolve", "split_history"]

SHOWN = 8  # how many titles a message lists
WIDEST = 80  # letters of a name in a list or a table
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # what would move a terminal's cursor


def cut(text: str, width: int) -> str:
    """A title on one line, of so many letters at most."""
    text = CONTROL.sub(" ", text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def split_history(text: str) -> list[int | str]:
    """``"blue guitar; 17"`` as a part of a title and an item id."""
    pieces = [piece.strip() for piece in text.split(";")]
    return [number_or_text(piece) for piece in pieces if piece]


def number_or_text(piece: str) -> int | str:
    """An id of the dataset folder, or something else."""
    return int(piece) if piece.isascii() and piece.isdigit() else piece


def resolve(history: Sequence[int | str], catalogue: Catalogue) -> list[int]:
    """The ids of items that are given by id, by raw identifier or by a part of their title."""
    return [_resolve(item, catalogue) if isinstance(item, str) else _id(item) for item in history]


def _id(item: int) -> int:
    try:
        return index(item)
    except TypeError:
        raise ServingError(f"Expected items by id or by text, got {item!r}.") from None


def _resolve(text: str, catalogue: Catalogue) -> int:
    number = catalogue.item_names.number(text)
    if number is not None:
        return number
    if text.startswith(RAW):
        raise ServingError(f"'{catalogue.dataset.name}' has no item {text!r}.")
    ids: list[int] = catalogue.item_ids.tolist()
    return ids[find_title(text, catalogue.dataset.titles, ids)]


def find_title(text: str, titles: Sequence[str], ids: Sequence[int]) -> int:
    """The place of the one title that is, or else contains, the text; capitals do not matter.

    Raises:
        ServingError: several do, which the message lists with their ids, or none does; then it
            names the nearest ones.
    """
    wanted = text.strip().casefold()
    lowered = [title.casefold() for title in titles]
    equal = [place for place, title in enumerate(lowered) if title == wanted]
    found = equal or [place for place, title in enumerate(lowered) if wanted and wanted in title]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "".join(
            f"\n  {ids[place]}: {cut(titles[place], WIDEST)}" for place in found[:SHOWN]
        )
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ServingError(
            f"{len(found)} titles contain {text!r}. Type more of one, or its id:{listed}{more}"
        )
    near = get_close_matches(wanted, lowered, n=SHOWN // 2, cutoff=0.4)
    places = [lowered.index(title) for title in near]
    listed = "".join(f"\n  {ids[place]}: {cut(titles[place], WIDEST)}" for place in places)
    cut_by = " Items of a history are separated by ';'." if "," in text else ""
    raise ServingError(
        f"No title contains {text!r}.{cut_by}" + (f" The nearest are:{listed}" if listed else "")
    )
