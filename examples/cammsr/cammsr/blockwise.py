r"""Ranks of targets, block by block over the catalogue: exact, and the same for any batch size.

The rank of a target with the score :math:`s` among V items is the expected one of
:mod:`cammsr.metrics`, here as

.. math:: r = \frac{V + 1}{2} + \frac{1}{2} \sum_j \mathrm{sign}(s_j - s)

A product of matrices in floating point has other last bits for other shapes, so equal items would
tie in one batch and not in the next. Here nothing is rounded: states and candidates are put on a
grid of integers first, so fine that every sum of their products stays below :math:`2^{52}`, where
float64 counts exactly. A score is then the same number in whatever order it is added up: by any
batch, block, number of threads and device.

A score that is a blend of products (:mod:`cammsr.blend`) is made of such exact products, item by
item in float64; and so is one to which a memory adds (:mod:`cammsr.memory`).

Each state has a grid of its own, all candidates share one, and both keep 22 bits at a width of up
to 256 (:func:`grid_bits`). Scores that differ by less than float32 could tell may so fall together
or part; all others order as they do in :func:`cammsr.metrics.target_ranks`, and numbers that lie on
the grid already, such as small integers, order exactly as they do there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cammsr.blend import Blend, paired_scores, scores_of
from cammsr.memory import Added, add_to, added_at, joined
from cammsr.metrics import Ranks
from cammsr.ranking import BLOCK, Reading
from cammsr.reading import READ, HistoryReader, readings
from cammsr.split import Ragged, Target

__all__ = ["BlockRanker", "grid_bits", "model_ranks"]


class BlockRanker:
    """Ranks targets among the candidates; no more than ``block`` scores a row exist at a time.

    Args:
        candidates: one an item, finite, (V, W).
        block: how many to score at a time. It changes no rank.
        blend: what makes the scores, where they are no products.
    """

    def __init__(
        self, candidates: Tensor, *, block: int = BLOCK, blend: Blend | None = None
    ) -> None:
        if block < 1:
            raise ValueError(f"Expected block >= 1, got {block}.")
        self.candidates = candidates
        self.block = block
        self.blend = blend
        self.width = candidates.shape[1] // (1 if blend is None else blend.modalities)
        self.bits = grid_bits(self.width)
        self.exponent = max(self._exponent(part) for part in candidates.split(block))

    @torch.no_grad()
    def ranks(
        self,
        states: Tensor,  # (B, W)
        item: Tensor,  # (B,)
        seen: Ragged | None = None,  # B rows
        added: Added | None = None,  # to the scores of B rows
    ) -> Ranks:
        """The rank of each row's item, the best is 1: among all, and among those not seen.

        What a row has seen counts once, and its target always competes.
        """
        self._check(states, item, seen)
        item = item.to(states.device)
        states = self._own_grid(states)
        own = paired_scores(states, self._shared_grid(item), self.blend).unsqueeze(1)
        if added is not None:
            own = own + added_at(
                added, torch.arange(len(item), device=item.device), item
            ).unsqueeze(1)
        signs = torch.zeros_like(own[:, 0])
        for start in range(0, len(self.candidates), self.block):
            part = self._shared_grid(slice(start, start + self.block))
            scores = add_to(scores_of(states, part, self.blend), added, start)
            signs += scores.sub_(own).sign_().sum(1)
        plain = (len(self.candidates) + 1 + signs) / 2
        masked = plain if seen is None else plain - self._ahead(states, own, item, seen, added)
        return Ranks(plain.cpu(), masked.cpu())

    def _ahead(
        self, states: Tensor, own: Tensor, item: Tensor, seen: Ragged, added: Added | None
    ) -> Tensor:  # (B,)
        """How many seen items stand before the target; a tie is half a one."""
        size = len(self.candidates)
        pairs = (seen.rows * size + seen.values).unique().to(item.device)
        row, other = pairs // size, pairs % size
        keep = other != item[row]
        found = torch.zeros_like(own[:, 0])
        for rows, others in zip(
            row[keep].split(self.block), other[keep].split(self.block), strict=True
        ):
            scores = paired_scores(states[rows], self._shared_grid(others), self.blend)
            if added is not None:
                scores = scores + added_at(added, rows, others)
            found.index_add_(0, rows, ((scores - own[rows, 0]).sign() + 1) / 2)
        return found

    def _shared_grid(self, which: Tensor | slice) -> Tensor:
        rows = self.candidates[which].double().mul_(2.0 ** (self.bits - self.exponent)).round_()
        # Blends and memories need the true size. To double or halve a number rounds nothing.
        return rows.mul_(2.0 ** (self.exponent - self.bits))

    def _own_grid(self, states: Tensor) -> Tensor:
        largest = states.double().abs().amax(1, keepdim=True)
        exponent = torch.frexp(largest).exponent
        rows = torch.ldexp(states.double(), self.bits - exponent).round_()
        return torch.ldexp(rows, exponent - self.bits)

    def _exponent(self, part: Tensor) -> int:
        low, high = torch.aminmax(part)
        if not (low.isfinite() and high.isfinite()):
            row = int((~self.candidates.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"The candidate of item {row} is not finite, so it cannot be ranked.")
        return int(torch.frexp(torch.maximum(-low, high).double()).exponent)

    def _check(self, states: Tensor, item: Tensor, seen: Ragged | None) -> None:
        rows = (len(states), len(item), len(states) if seen is None else len(seen))
        if len(set(rows)) > 1:
            raise ValueError(
                "Expected as many states as items and histories, got {} states, {} items and {} "
                "histories.".format(*rows)
            )
        if states.shape[1] != self.width:
            raise ValueError(
                f"Expected states as wide as the candidates, got {states.shape[1]} and "
                f"{self.width}."
            )
        broken = (~states.isfinite()).any(1).nonzero().flatten()
        if len(broken):
            raise ValueError(f"The state in row {int(broken[0])} is not finite.")
        _check_items("items", item, len(self.candidates))
        if seen is not None:
            _check_items("seen items", seen.values, len(self.candidates))


def grid_bits(width: int) -> int:
    """How many bits each factor may have so that sums of ``width`` products stay exact.

    They stay within :math:`2^{52}`, and so the difference of two within :math:`2^{53}`.
    """
    return (52 - (width - 1).bit_length()) // 2


def model_ranks(
    reader: HistoryReader, target: Target, *, batch_size: int = 256, block: int = BLOCK
) -> Ranks:
    """The rank of every user's target, as :func:`cammsr.metrics.target_ranks` in bounded memory.

    Args:
        reader: the model.
        target: histories and what came next.
        batch_size: how many users to rank at a time. It changes no rank.
        block: how many items to score at a time. It changes no rank.
    """
    if batch_size < 1:
        raise ValueError(f"Expected batch_size >= 1, got {batch_size}.")
    ranker: BlockRanker | None = None
    found: list[Ranks] = []
    for start, states, added, last in _gathered(reader, target, max(1, batch_size // READ)):
        if ranker is None:
            ranker = BlockRanker(last.candidates, block=block, blend=last.blend)
        for first in range(0, len(states), batch_size):
            part = slice(first, first + batch_size)
            some = None if added is None else Added(added.items[part], added.values[part])
            rows = slice(start + first, min(start + first + batch_size, start + len(states)))
            seen = rows_of(target.history, rows)
            found.append(ranker.ranks(states[part], target.item[rows], seen, some))
    return Ranks(*(torch.cat(part) for part in zip(*found, strict=True)))


def rows_of(ragged: Ragged, rows: slice) -> Ragged:
    """Some rows that follow each other."""
    offsets = ragged.offsets[rows.start : rows.stop + 1]
    return Ragged(ragged.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _gathered(
    reader: HistoryReader, target: Target, count: int
) -> Iterator[tuple[int, Tensor, Added | None, Reading]]:
    """States of some readings together, what is added, where they begin, and the last reading."""
    start, some = 0, list[Reading]()
    for rows, reading in readings(reader, target):
        some.append(reading)
        if len(some) == count or rows.stop == len(target.item):
            told = [part.added for part in some if part.added is not None]
            added = joined(told, len(reading.candidates)) if told else None
            yield start, torch.cat([part.states for part in some]), added, reading
            start, some = rows.stop, []


def _check_items(what: str, items: Tensor, size: int) -> None:
    if len(items) and (int(items.min()) < 0 or int(items.max()) >= size):
        raise ValueError(
            f"Expected {what} from 0 to {size - 1}, got {int(items.min())} to {int(items.max())}."
        )
