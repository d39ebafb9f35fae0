"""Histories as rectangles of rows, padded on the right, and what is wrong with some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cammsr.dataset import Dataset, in_seconds
from cammsr.saved import Catalogue, ServingError
from cammsr.split import Ragged
from cammsr.titles import resolve

__all__ = ["History", "check_histories", "typed_history", "user_histories"]


class History(NamedTuple):
    """Items in the order of time, and when each was taken."""

    items: Tensor  # (B, L) int64
    valid: Tensor  # (B, L) bool, padded on the right
    times: Tensor | None  # (B, L) int64, if they are known


def user_histories(dataset: Dataset) -> Ragged:
    """All that each user took, a row a user."""
    counts = torch.bincount(dataset.user_ids, minlength=dataset.num_users)
    return Ragged.from_lengths(dataset.item_ids, counts, dataset.timestamps)


def typed_history(
    history: Sequence[int | str], catalogue: Catalogue, times: Sequence[int] | None = None
) -> History:
    """One history of ids or parts of titles, and when each item was taken, if that is given.

    Raises:
        ServingError: it is empty, an item is unknown, or there are more or fewer times than items.
    """
    if isinstance(history, str):
        raise ServingError(f"Expected a list of items, got the text {history!r}.")
    ids = resolve(history, catalogue)
    if not ids:
        raise ServingError(
            "The history is empty. Give at least one item, by its id or a part of its title."
        )
    if times is not None and len(times) != len(ids):
        raise ServingError(f"Expected a time for each of {len(ids)} items, got {len(times)} times.")
    items = catalogue.item_rows(torch.tensor(ids)).unsqueeze(0)
    known = None if times is None else in_seconds(torch.tensor([list(times)], dtype=torch.int64))
    return History(items, torch.ones_like(items, dtype=torch.bool), known)


def check_histories(history: History, num_items: int) -> None:
    """Refuse what is not padded on the right, is empty, or has other items than the catalogue.

    Raises:
        ServingError: and the message says what is wrong.
    """
    items, valid, times = history
    if items.ndim != 2 or items.shape != valid.shape:
        raise ServingError(
            "Expected items and valid of one shape (B, L), got "
            f"{tuple(items.shape)} and {tuple(valid.shape)}."
        )
    if times is not None and items.shape != times.shape:
        raise ServingError(
            f"Expected times of the items' shape {tuple(items.shape)}, got {tuple(times.shape)}."
        )
    if not len(items):
        raise ServingError("Expected at least one history, got none.")
    empty = (~valid.any(1)).nonzero().flatten()
    if len(empty):
        raise ServingError(f"The history in row {int(empty[0])} is empty. Give it an item.")
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        raise ServingError("Expected histories padded on the right, got a gap before an item.")
    real = items[valid]
    if int(real.min()) < 0 or int(real.max()) >= num_items:
        raise ServingError(
            f"Expected items from 0 to {num_items - 1}, got {int(real.min())} to {int(real.max())}."
        )
