"""CAMMSR: one causal Transformer a modality over streams enriched by category-guided experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.items import ItemStreams, look_up
from mmfuse import CategoryGuidedMoE
from mmfuse.types import EnrichmentOutput, Streams

__all__ = ["CAMMSR", "RecommenderOutput", "last_position", "last_valid"]


class RecommenderOutput(NamedTuple):
    """What a recommender knows after reading a batch of histories."""

    states: Tensor  # (B, L, W): the interest at every position
    candidates: Tensor  # (V, W): the score of an item is its product with the state (Eq. 15)
    losses: dict[str, Tensor]  # unweighted
    enriched: EnrichmentOutput | None  # what the objective may contrast, and the report shows
    present: Tensor | None  # (B, L, M): where the enriched streams were observed


class CAMMSR(nn.Module):
    """The whole model (Eq. 2-15).

    Every position of a sequence is trained in one causal pass: no position sees a later one, in
    the routers and in the encoders. Candidates are the items before enrichment.
    """

    labels: Tensor

    def __init__(
        self,
        features: Mapping[str, Tensor],  # modality -> (V, D_m)
        labels: Tensor,  # (V, C) bool, the categories of each item
        config: ModelConfig,
    ) -> None:
        super().__init__()
        dim = config.dim
        num_items, num_categories = labels.shape
        self.config = config
        self.items = ItemStreams(
            features, num_items, dim, use_id=config.use_id, scale=config.init_scale
        )
        self.positions = nn.Parameter(torch.empty(config.max_length, dim))
        self.register_buffer("labels", labels, persistent=False)
        modalities = len(self.items.names)
        self.enrichment = CategoryGuidedMoE(
            dim,
            modalities,
            max(num_categories, 1),
            config.num_experts,
            normalize=config.normalize_experts,
            shared_experts=config.shared_experts,
            top_k=config.top_k,
            guidance=config.guidance,
            reduction=config.reduction,
            temperature=config.gate_temperature,
            detach=config.detach_gate,
        )
        self.encoders = nn.ModuleList(make_encoder(config) for _ in range(modalities))
        nn.init.normal_(self.positions, std=config.init_scale)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares projecting it again."""
        catalogue = self.items() if catalogue is None else catalogue
        x, present = look_up(catalogue, items)
        x = x + self.positions[: items.shape[1], None, :]
        guided = self.config.category_guidance and self.labels.shape[1] > 0
        context = self.labels[items] if guided else None
        enriched: EnrichmentOutput = self.enrichment(x, present, context, valid=valid)
        states = [self.encode(stream, m) for m, stream in enumerate(enriched.x.unbind(-2))]
        return RecommenderOutput(
            states=torch.cat(states, dim=-1),
            candidates=catalogue.x.flatten(-2),
            losses=enriched.losses,
            enriched=enriched,
            present=present,
        )

    def encode(
        self,
        stream: Tensor,  # (B, L, D)
        modality: int,
        last: Tensor | None = None,  # (B,)
    ) -> Tensor:  # (B, L, D), or (B, D) where last is given
        """Run one stream through the encoder of a modality, to the end or at one position."""
        states: Tensor = self.encoders[modality](stream, last)
        return states


def last_position(valid: Tensor) -> Tensor:  # (B, L) -> (B,)
    """The last real position of every row; 0 where there is none."""
    return (valid.sum(-1) - 1).clamp(min=0)


def last_valid(x: Tensor, valid: Tensor) -> Tensor:  # (B, L, W), (B, L) -> (B, W)
    """What stands at the last real position of every row."""
    return x[torch.arange(len(x), device=x.device), last_position(valid)]
