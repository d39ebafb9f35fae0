"""What a model makes of all histories of a split: always the same ones together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from cammsr.hm4sr import HM4SR
from cammsr.model import RecommenderOutput, last_valid
from cammsr.ranking import Reader, Reading
from cammsr.split import Target

__all__ = ["READ", "HistoryReader", "TimedReader", "make_reader", "readings"]

READ = 256  # histories read at a time, whatever is ranked at a time


class HistoryReader(Protocol):
    """What reads histories: a :class:`cammsr.ranking.Reader`, or one that asks for times too."""

    x: Tensor  # on the device that reads
    max_length: int

    def __call__(self, items: Tensor, valid: Tensor) -> Reading:
        """States of histories (B, L), padded on the right, and the candidates."""
        ...


class TimedReader:
    """Reads by a model that wants to know when the items were; put it in eval mode first."""

    def __init__(self, model: HM4SR) -> None:
        self.model = model
        self.max_length = len(model.positions)
        with torch.no_grad():
            self.catalogue = model.items()
        self.x: Tensor = self.catalogue.x

    @torch.no_grad()
    def __call__(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        times: Tensor | None = None,  # (B, L)
    ) -> Reading:
        """Read histories, padded on the right; positions stand in for times that are not known."""
        output: RecommenderOutput = self.model(items, valid, self.catalogue, times=times)
        return Reading(last_valid(output.states, valid), output.candidates, None)


def make_reader(model: nn.Module) -> HistoryReader:
    """A reader of the model, with times if it wants them."""
    return TimedReader(model) if isinstance(model, HM4SR) else Reader(model)


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
        items, valid = items.to(device), valid.to(device)
        if isinstance(reader, TimedReader):
            times = target.history.padded_times(rows, reader.max_length)
            reading = reader(items, valid, None if times is None else times.to(device))
        else:
            reading = reader(items, valid)
        yield slice(int(rows[0]), int(rows[-1]) + 1), reading
