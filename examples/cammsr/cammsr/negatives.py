"""Which items a step compares its targets with, where it is not the whole catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cammsr.batches import Batch, trained_positions
from cammsr.model import RecommenderOutput
from cammsr.processes import agreed
from mmfuse.losses import all_gather_rows

__all__ = ["Negatives", "NegativeSampler", "Part", "log_inclusion", "read_part"]

POWER = 0.75  # of an item's count, as word2vec draws its negatives


class Negatives(NamedTuple):
    """Different items, and the logarithm of the probability that each of them is here."""

    items: Tensor  # (N,) int64, ascending
    log_inclusion: Tensor  # (N,) float64


class NegativeSampler(nn.Module):
    """Draw negatives by how often items occur in training.

    Args:
        counts: How often each item occurs, (V,).
        num_sampled: How many to draw, with replacement, by ``(count + 1) ** 0.75``; those that are
            drawn twice count once. Not fewer than there are items takes all of them. Zero takes
            the targets of the batch, of all processes, in the place of a draw.
    """

    cumulative: Tensor

    def __init__(self, counts: Tensor, num_sampled: int) -> None:
        super().__init__()
        self.num_sampled = num_sampled
        counts = counts.double()  # a target is one that occurs
        weights = counts.clamp(min=1) if num_sampled == 0 else (counts + 1) ** POWER
        self.register_buffer("cumulative", weights.cumsum(0), persistent=False)

    def forward(self, targets: Tensor) -> Negatives:  # (T,)
        """The negatives of a step, the same in all processes."""
        total, device = self.cumulative[-1], self.cumulative.device
        if self.num_sampled == 0:
            found = all_gather_rows(targets)
        elif self.num_sampled >= len(self.cumulative):
            everything = torch.arange(len(self.cumulative), device=device)
            return Negatives(everything, torch.zeros_like(everything, dtype=torch.float64))
        else:
            drawn = torch.rand(self.num_sampled, dtype=torch.float64, device=device)
            places = torch.searchsorted(self.cumulative, agreed(drawn) * total, right=True)
            found = places.clamp(max=len(self.cumulative) - 1)
        items = found.unique()
        before = self.cumulative[(items - 1).clamp(min=0)].where(items > 0, 0.0)
        shares = (self.cumulative[items] - before) / total
        return Negatives(items, log_inclusion(shares, len(found)))


def log_inclusion(shares: Tensor, draws: int) -> Tensor:
    """The logarithm of the probability that an item is drawn at least once."""
    return torch.log(-torch.expm1(draws * torch.log1p(-shares)))


class Part(NamedTuple):
    """What a model says where it knows a part of the catalogue only."""

    output: RecommenderOutput
    batch: Batch  # items and targets by their places in the part
    negatives: Tensor  # (N,) places in the part


def read_part(
    model: nn.Module, batch: Batch, negatives: Tensor, more: Mapping[str, Tensor | None]
) -> Part:
    """Let a model read a batch as if there were no items beyond the batch and the negatives.

    Only these are projected. The labels, which belong to items, are handed over for the call.
    """
    trained = trained_positions(batch)
    items = torch.cat([batch.items.flatten(), batch.targets[trained], negatives]).unique()
    local = batch._replace(
        items=torch.searchsorted(items, batch.items.contiguous()),
        targets=torch.where(
            trained,
            torch.searchsorted(items, batch.targets.clamp(min=0).contiguous()),
            batch.targets,
        ),
    )
    more = {name: local.targets if name == "targets" else given for name, given in more.items()}
    labels = {name: kept[items] for name, kept in model.named_buffers() if name == "labels"}
    catalogue = model.get_submodule("items")(items)
    arguments = (local.items, local.valid, catalogue)
    output = functional_call(model, labels, arguments, more)
    return Part(output, local, torch.searchsorted(items, negatives))
