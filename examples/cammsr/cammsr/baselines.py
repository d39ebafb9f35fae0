"""Recommenders with one Transformer: SASRec, and any fusion in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.items import ItemStreams
from cammsr.model import RecommenderOutput
from mmfuse import SumFusion
from mmfuse.fusion import build
from mmfuse.types import Streams

__all__ = ["FusedRecommender", "fused_recommender", "sasrec"]


class FusedRecommender(nn.Module):
    """Fuse the modalities of each item to one vector, then one causal Transformer.

    The fused vectors are both what the Transformer reads and what it is compared with.
    """

    labels: Tensor

    def __init__(
        self, items: ItemStreams, fusion: nn.Module, labels: Tensor, config: ModelConfig
    ) -> None:
        super().__init__()
        self.items = items
        self.fusion = fusion
        self.register_buffer("labels", labels, persistent=False)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.encoder = make_encoder(config)
        nn.init.normal_(self.positions, std=config.init_scale)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares projecting it again."""
        x, present = self.items() if catalogue is None else catalogue
        fused, _, losses = self.fusion(x, present, self.labels)  # (V, D)
        stream = nn.functional.embedding(items, fused) + self.positions[: items.shape[1]]
        return RecommenderOutput(self.encoder(stream), fused, losses, None, None)


def sasrec(features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig) -> FusedRecommender:
    """SASRec (Kang and McAuley, 2018): the id alone, trained by the same loop and loss."""
    items = ItemStreams({}, len(labels), config.dim, scale=config.init_scale)
    return FusedRecommender(items, SumFusion(config.dim, 1), labels, config)


#: The whole catalogue is fused at once: what grows with the product of the widths stays narrow.
OPTIONS: dict[str, dict[str, Any]] = {"tensor": {"hidden_dim": 12}, "tucker": {"hidden_dim": 12}}


def fused_recommender(
    features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig, *, fusion: str
) -> FusedRecommender:
    """All modalities, by any fusion of :func:`mmfuse.fusion.available`."""
    items = ItemStreams(
        features, len(labels), config.dim, use_id=config.use_id, scale=config.init_scale
    )
    block = build(fusion, config.dim, len(items.names), **OPTIONS.get(fusion, {}))
    return FusedRecommender(items, block, labels, config)
