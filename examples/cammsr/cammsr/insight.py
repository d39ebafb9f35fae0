"""What CAMMSR does inside: how much each modality counts by category, and which experts work."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cammsr.batches import target_loader
from cammsr.model import CAMMSR, RecommenderOutput, made_candidates
from cammsr.split import Target
from mmfuse.types import RouterOutput

__all__ = ["Insight", "insight"]


class Insight(NamedTuple):
    """Means over all real positions of some histories."""

    weights: Tensor  # (C, M): the weight of each modality by category; NaN where none occurs
    positions: Tensor  # (C,): how many positions a category has
    use: Tensor  # (M, E): each expert's share in the size of its modality's; NaN without experts


@torch.no_grad()
def insight(
    model: CAMMSR,
    target: Target,
    labels: Tensor,  # (V, C) bool
    batch_size: int = 256,
) -> Insight:
    """Read all histories once; no more than a batch of them is held at a time."""
    catalogue = model.items()
    made = made_candidates(model, catalogue)
    modalities, experts = len(model.items.names), model.config.num_experts
    sums = torch.zeros(labels.shape[1], modalities, dtype=torch.float64)
    positions = torch.zeros(labels.shape[1], dtype=torch.float64)
    sizes = torch.zeros(modalities, experts, dtype=torch.float64)
    for batch in target_loader(target, model.config.max_length, batch_size):
        output: RecommenderOutput = model(
            batch.items, batch.valid, catalogue, times=batch.times, **made
        )
        assert output.enriched is not None  # CAMMSR always enriches
        own = labels[batch.items[batch.valid]].double()  # (T, C)
        sums += own.T @ output.enriched.weights[batch.valid].double()
        positions += own.sum(0)
        sizes += _sizes(output.enriched.router, experts)[batch.valid].sum(0)
    weights = sums / positions.unsqueeze(1)
    return Insight(weights, positions.long(), sizes / sizes.sum(-1, keepdim=True))


def _sizes(router: RouterOutput, experts: int) -> Tensor:  # (B, L, M, E)
    """The size of every expert's weight, zero for those that a token does not keep."""
    size = router.expert_weight.abs().double()
    if router.expert_index is None:
        return size
    every = size.new_zeros(*size.shape[:-1], experts + 1)  # the last one is nobody
    index = torch.where(router.expert_index < 0, experts, router.expert_index)
    return every.scatter_add(-1, index, size)[..., :experts]
