"""Recommenders with one Transformer: SASRec, and any fusion in front of it.

Two of them are whole models of papers: UniSRec, and MMMLP, which has no Transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.items import ID, ItemStreams, look_up, make_items
from cammsr.model import RecommenderOutput
from mmfuse import SumFusion
from mmfuse.fusion import MixerFusion, available, build
from mmfuse.types import Streams

__all__ = [
    "FusedRecommender",
    "SequenceRecommender",
    "fused_recommender",
    "mmmlp",
    "sasrec",
    "unisrec",
]


class FusedRecommender(nn.Module):
    """Fuse the modalities of each item to one vector, then one causal Transformer.

    The fused vectors are both what the Transformer reads and what it is compared with: by their
    product, or, given a ``temperature``, by their cosine divided by it.
    """

    labels: Tensor | None

    def __init__(
        self,
        items: ItemStreams,
        fusion: nn.Module,
        labels: Tensor | None,
        config: ModelConfig,
        *,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.items = items
        self.fusion = fusion
        self.register_buffer("labels", labels, persistent=False)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.encoder = make_encoder(config)
        nn.init.normal_(self.positions, std=config.first_scale)

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
        states = self.encoder(stream)
        if self.temperature is not None:
            states = nn.functional.normalize(states, dim=-1) / self.temperature
            fused = nn.functional.normalize(fused, dim=-1)
        return RecommenderOutput(states, fused, losses, None, None)


def sasrec(features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig) -> FusedRecommender:
    """SASRec (Kang and McAuley, 2018): the id alone, trained by the same loop and loss."""
    items = ItemStreams({}, len(labels), config.dim, scale=config.first_scale)
    return FusedRecommender(items, SumFusion(config.dim, 1), labels, config)


class SequenceRecommender(nn.Module):
    """Fuse the modalities along each history, then one causal Transformer.

    Such a fusion says nothing of an item alone: what the states are compared with is the sum of
    an item's modalities. Without a Transformer (``encode=False``) the fused sequence is the states.
    """

    def __init__(
        self, items: ItemStreams, fusion: nn.Module, config: ModelConfig, *, encode: bool = True
    ) -> None:
        super().__init__()
        self.items = items
        self.fusion = fusion
        # Others find here how many items it reads; without a Transformer they are empty.
        width = config.dim if encode else 0
        self.positions = nn.Parameter(torch.empty(config.max_length, width), requires_grad=encode)
        self.encoder = make_encoder(config) if encode else None
        nn.init.normal_(self.positions, std=config.first_scale)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares projecting it again."""
        catalogue = self.items() if catalogue is None else catalogue
        x, present = look_up(catalogue, items)
        fused, _, losses = self.fusion(x, present, valid=valid)  # (B, L, D)
        if self.encoder is not None:
            fused = self.encoder(fused + self.positions[: items.shape[1]])
        return RecommenderOutput(fused, catalogue.x.sum(-2), losses, None, None)


def fused_recommender(
    features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig, *, fusion: str
) -> FusedRecommender | SequenceRecommender:
    """All modalities, by any fusion of :func:`mmfuse.fusion.available`."""
    items = make_items(features, labels, config)
    options = _options(fusion, items.names, config)
    block = build(fusion, config.dim, len(items.names), **options)
    if fusion in available("sequences"):
        return SequenceRecommender(items, block, config)
    context = None if fusion == "dynamic" else labels  # it takes a user, whom no item knows
    return FusedRecommender(items, block, context, config)


def unisrec(
    features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig
) -> FusedRecommender:
    """UniSRec (Hou et al., 2022): whitened modalities plus the id, compared by cosine / .07."""
    items = make_items(features, labels, config)
    options = _options("whitening", items.names, config)
    fusion = build("whitening", config.dim, len(items.names), **options)
    return FusedRecommender(items, fusion, None, config, temperature=0.07)


def mmmlp(
    features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig
) -> SequenceRecommender:
    """MMMLP (Liang et al., 2023): one MLP-Mixer a modality, and no Transformer.

    Causal here, so that every position can be trained; as many layers, as wide inside and with the
    dropout that ``config`` gives the Transformers of others.
    """
    items = make_items(features, labels, config)
    fusion = MixerFusion(
        config.dim,
        len(items.names),
        max_length=config.max_length,
        num_layers=config.num_layers,
        hidden_dim=config.hidden_dim,
        dropout=config.dropout,
    )
    return SequenceRecommender(items, fusion, config, encode=False)


def _options(fusion: str, names: tuple[str, ...], config: ModelConfig) -> dict[str, Any]:
    """What a fusion has to know of the recommender."""
    if fusion in {"tensor", "tucker"}:  # for the whole catalogue at once: no wide products
        return {"hidden_dim": 12}
    if fusion in {"whitening", "dynamic", "interactive"}:  # the id passes as it is, or starts so
        return {"target": names.index(ID) if ID in names else None}
    if fusion in {"frequency", "mixer", "fdsa", "nova", "dif"}:
        return {"max_length": config.max_length}
    return {}
