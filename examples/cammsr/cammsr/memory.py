"""What users took together: a memory of pairs of items, added to the scores of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.split import Ragged

__all__ = [
    "NEIGHBOURS",
    "Added",
    "Memory",
    "add_to",
    "added_at",
    "fit_memory",
    "joined",
    "memory_of",
]

ROWS = 512  # items whose neighbours are looked for together
FIRST_WEIGHT = 4.0
NEIGHBOURS = 200  # of an item, where nothing else is said


class Added(NamedTuple):
    """What is added to the scores of some items, each once and in their order in every row."""

    items: Tensor  # (B, E), V where there is nothing
    values: Tensor  # (B, E)


class Memory(nn.Module):
    r"""The item k-NN of a history, times a weight that is trained along with the model.

    .. math::
        m_j = e^b \sum_{l=1}^{L} d^{L - l} s_{i_l j}, \qquad
        s_{ij} = \frac{n_{ij}}{\sqrt{n_i n_j}}

    where :math:`n_i` users have item i in their train sequence and :math:`n_{ij}` have both; each
    item keeps its largest s. Of an item that the history has already nothing is said. In training
    :math:`n_{ij}` leaves out the user whose sequence it is, as far as the batch holds it: who is to
    be predicted must not have been counted.

    Low-rank scores of states and items cannot tell single pairs apart that few users share, and
    this is where item k-NN is strong. It is not a part of CAMMSR, nor of any paper compared here.

    Args:
        num_items: Items V of the catalogue.
        size: How many neighbours N each item keeps.
        decay: The factor d by which an item counts less than the one after it.
    """

    neighbours: Tensor  # (V, N) int32
    similarity: Tensor  # (V, N)
    rarity: Tensor  # (V,): 1 / sqrt(n)

    def __init__(self, num_items: int, size: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        size = min(size, num_items)
        self.log_weight = nn.Parameter(torch.tensor([FIRST_WEIGHT]).log())
        self.register_buffer("neighbours", torch.zeros(num_items, size, dtype=torch.int32))
        self.register_buffer("similarity", torch.zeros(num_items, size))
        self.register_buffer("rarity", torch.zeros(num_items))

    @torch.no_grad()
    def fit(self, train: Ragged) -> None:
        """Count whom each pair of items shares; no more than some rows of the pairs exist."""
        pairs = (train.rows.numpy(), train.values.numpy())
        shape = (len(train), len(self.rarity))
        taken = sparse.csr_array((np.ones(len(train.values), np.float32), pairs), shape=shape)
        taken.data[:] = 1  # an item once a user
        self.rarity.copy_(torch.from_numpy(taken.sum(0)).clamp(min=1).rsqrt())
        by_item = taken.T.tocsr()
        for start in range(0, len(self.rarity), ROWS):
            shared = torch.from_numpy((by_item[start : start + ROWS] @ taken).toarray())
            rows = torch.arange(len(shared))
            shared[rows, start + rows] = 0
            near = shared * self.rarity * self.rarity[start : start + ROWS, None]
            found = near.topk(self.neighbours.shape[1])
            self.similarity[start : start + ROWS] = found.values
            self.neighbours[start : start + ROWS] = found.indices.int()

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L), padded on the right
    ) -> Added:
        """What the memory says after whole histories."""
        age = valid.sum(1, keepdim=True) - 1 - torch.arange(items.shape[1], device=items.device)
        weight = torch.where(valid, self.decay ** age.clamp(min=0), 0) * self.log_weight.exp()
        near = self.neighbours[items].long().flatten(1)  # (B, L N)
        value = (self.similarity[items] * weight.unsqueeze(-1)).flatten(1)
        history = torch.where(valid, items, -1).sort(dim=1).values
        place = torch.searchsorted(history, near).clamp(max=history.shape[1] - 1)
        value = value.masked_fill(history.gather(1, place) == near, 0)
        return _summed(near, value, len(self.rarity))

    def along(
        self,
        items: Tensor,  # (B, L)
        read: Tensor,  # (B, L), which of them are real
        sequence: Tensor,  # (B, S): all items of the user that are known here, -1 is nothing
        wanted: Tensor,  # (B, L), T of them
    ) -> Tensor:  # (T, V)
        """What it says at the positions wanted, without what the sequence itself has told it."""
        said = self._told(items, read, sequence, wanted)
        return said * self.log_weight.exp()

    @torch.no_grad()
    def _told(self, items: Tensor, read: Tensor, sequence: Tensor, wanted: Tensor) -> Tensor:
        size = len(self.rarity)
        own = torch.where(sequence < 0, size, sequence)  # a column more, for nothing
        first = (own.unsqueeze(2) == own.unsqueeze(1)).int().argmax(2)  # (B, S)
        rarity = torch.cat([self.rarity, self.rarity.new_zeros(1)])[own]
        told = rarity.new_zeros(len(items), size + 1)
        counted = torch.zeros_like(rarity)  # of the sequence itself
        said = rarity.new_empty(int(wanted.sum()), size)
        place = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)
        for position, (item, real, rows) in enumerate(
            zip(items.unbind(1), read.unbind(1), wanted.unbind(1), strict=True)
        ):
            near = self.neighbours[item].long()
            told = (told * self.decay).scatter_add_(1, near, self.similarity[item] * real[:, None])
            kept = torch.zeros_like(told, dtype=torch.bool).scatter_(1, near, True).gather(1, own)
            itself = self.rarity[item].unsqueeze(1) * rarity * (kept & real[:, None])
            counted = counted * self.decay + itself
            mine = own[rows]
            others = told[rows].gather(1, mine) - counted[rows]
            others = others.clamp(min=0).masked_fill(first[rows] <= position, 0)
            said[place[rows, position]] = told[rows].scatter(1, mine, others)[:, :size]
        return said


def memory_of(model: nn.Module) -> Memory | None:
    """The memory beside a model, if it has one."""
    memory = getattr(model, "memory", None)
    return memory if isinstance(memory, Memory) else None


def fit_memory(model: nn.Module, train: Ragged) -> None:
    """Let the memory beside a model count, if there is one."""
    memory = memory_of(model)
    if memory is not None:
        memory.fit(train)


def add_to(
    scores: Tensor,  # (B, N)
    added: Added | None,
    start: int = 0,
) -> Tensor:  # (B, N)
    """The scores of the items from ``start`` on, with what is added to them."""
    if added is None:
        return scores
    place = added.items - start
    inside = (place >= 0) & (place < scores.shape[1])
    values = torch.where(inside, added.values, 0).to(scores.dtype)
    return scores.scatter_add(1, torch.where(inside, place, 0), values)


def added_at(added: Added, rows: Tensor, items: Tensor) -> Tensor:  # (P,), (P,) -> (P,)
    """What is added to some pairs of a row and an item."""
    if not len(items):
        return added.values.new_zeros(0)
    size = int(torch.maximum(added.items.amax(), items.amax())) + 1
    first = size * torch.arange(len(added.items), device=rows.device)
    keys = (added.items + first.unsqueeze(1)).flatten()  # in order
    wanted = first[rows] + items
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, added.values.flatten()[place], 0)


def joined(parts: Sequence[Added], num_items: int) -> Added:
    """The rows of all parts, one after the other."""
    width = max(part.items.shape[1] for part in parts)
    more = [width - part.items.shape[1] for part in parts]
    return Added(
        torch.cat(
            [F.pad(p.items, (0, n), value=num_items) for p, n in zip(parts, more, strict=True)]
        ),
        torch.cat([F.pad(p.values, (0, n)) for p, n in zip(parts, more, strict=True)]),
    )


def _summed(items: Tensor, values: Tensor, num_items: int) -> Added:  # (B, E), (B, E)
    """One entry for each item of a row, in the order of their numbers, and then nothing."""
    items, order = items.sort(dim=1, stable=True)
    fresh = torch.cat([torch.zeros_like(items[:, :1]), (items.diff(dim=1) != 0).long()], dim=1)
    place = fresh.cumsum(1)
    total = torch.zeros_like(values).scatter_add(1, place, values.gather(1, order))
    return Added(torch.full_like(items, num_items).scatter(1, place, items), total)
