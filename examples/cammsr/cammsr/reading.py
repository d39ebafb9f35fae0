"""What a model makes of all histories of a split: always the same ones together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from cammsr.ranking import Reading
from cammsr.split import Target

__all__ = ["READ", "HistoryReader", "readings"]

READ = 256  # histories read at a time, whatever is ranked at a time


class HistoryReader(Protocol):
    """What reads histories, such as a :class:`cammsr.ranking.Reader`."""

    x: Tensor  # on the device that reads
    max_length: int

    def __call__(self, items: Tensor, valid: Tensor, times: Tensor | None = None) -> Reading:
        """States of histories (B, L), padded on the right, and the candidates."""
        ...


@torch.no_grad()
def readings(reader: HistoryReader, target: Target) -> Iterator[tuple[slice, Reading]]:
    """Read all histories, always the same 256 together, so that states never depend on a batch.

    Raises:
        ValueError: a history is empty; the message names its row.
    """
    empty = (target.history.lengths == 0).nonzero().flatten()
    if len(empty):
        raise ValueError(f"The history in row {int(empty[0])} is empty, so nothing can be read.")
    device = reader.x.device
    for rows in torch.arange(len(target.item)).split(READ):
        items, valid = target.history.padded(rows, reader.max_length)
        times = target.history.padded_times(rows, reader.max_length)
        reading = reader(
            items.to(device), valid.to(device), None if times is None else times.to(device)
        )
        yield slice(int(rows[0]), int(rows[-1]) + 1), reading
