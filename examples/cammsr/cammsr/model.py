"""CAMMSR: one causal Transformer a modality over streams enriched by category-guided experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cammsr.blend import Blend
from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.enrichment import enrich_alone, make_enrichment
from cammsr.items import look_up, make_items
from cammsr.time_code import IntervalEmbedding, TemporalMixture, TimeCode, times_or_positions
from mmfuse.types import EnrichmentOutput, Streams

__all__ = ["CAMMSR", "RecommenderOutput", "last_position", "last_valid", "made_candidates"]


class RecommenderOutput(NamedTuple):
    """What a recommender knows after reading a batch of histories."""

    states: Tensor  # (B, L, W): the interest at every position
    candidates: Tensor  # (V, W): the score of an item is its product with the state (Eq. 15)
    losses: dict[str, Tensor]  # unweighted
    enriched: EnrichmentOutput | None  # what the objective may contrast, and the report shows
    present: Tensor | None  # (B, L, M): where the enriched streams were observed
    blend: Blend | None = None  # makes the scores, where they are no products


class CAMMSR(nn.Module):
    """The whole model (Eq. 2-15).

    Every position of a sequence is trained in one causal pass: no position sees a later one, in
    the routers and in the encoders. Candidates are the items before enrichment, or each enriched
    by itself.

    Two settings add what the paper leaves open, the time: vectors of the intervals beside those of
    the positions, and HM4SR's temporal mixture, through which the streams go before they are
    routed. Both change nothing at first. Where times are not known, positions stand in for them.
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
        num_categories = labels.shape[1]
        self.config = config
        self.items = make_items(features, labels, config)
        self.positions = nn.Parameter(torch.empty(config.max_length, dim))
        self.register_buffer("labels", labels, persistent=False)
        modalities = len(self.items.names)
        self.enrichment = make_enrichment(config, modalities, max(num_categories, 1))
        self.encoders = nn.ModuleList(make_encoder(config) for _ in range(modalities))
        nn.init.normal_(self.positions, std=config.first_scale)
        # Drawn last: without them the weights above are the same.
        self.reads_times = config.time_intervals or config.time_routing
        self.intervals = IntervalEmbedding(dim) if config.time_intervals else None
        routed = config.time_routing
        self.time_code = TimeCode(dim) if routed else None
        self.temporal = TemporalMixture(dim, modalities, spread=0.0) if routed else None

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
        *,
        times: Tensor | None = None,  # (B, L) int64, of the items
        candidates: Tensor | None = None,  # (V, M, D)
    ) -> RecommenderOutput:
        """Read histories, padded on the right.

        ``catalogue`` spares projecting it again, ``candidates`` making them again.
        """
        catalogue = self.items() if catalogue is None else catalogue
        x, present = look_up(catalogue, items)
        x = x + self.positions[: items.shape[1], None, :]
        if self.reads_times:
            x = self._timed(x, times_or_positions(items, times))
        context = None if self.known is None else self.known[items]
        enriched: EnrichmentOutput = self.enrichment(x, present, context, valid=valid)
        states = [self.encode(stream, m) for m, stream in enumerate(enriched.x.unbind(-2))]
        candidates = self.candidates(catalogue) if candidates is None else candidates
        return RecommenderOutput(
            states=torch.cat(states, dim=-1),
            candidates=candidates.flatten(-2),
            losses=enriched.losses,
            enriched=enriched,
            present=present,
        )

    @property
    def known(self) -> Tensor | None:  # (V, C)
        """The categories that guide; None where nothing does."""
        guided = self.config.category_guidance and self.labels.shape[1] > 0
        return self.labels if guided else None

    def candidates(self, catalogue: Streams) -> Tensor:  # (V, M, D) -> (V, M, D)
        """What states are compared with: the items, or the items enriched."""
        if self.config.candidates == "plain":
            return catalogue.x
        return enrich_alone(self.enrichment, catalogue, self.known)

    def _timed(self, x: Tensor, times: Tensor) -> Tensor:  # (B, L, M, D), (B, L) -> (B, L, M, D)
        if self.intervals is not None:
            x = x + self.intervals(times).unsqueeze(-2)
        if self.temporal is not None and self.time_code is not None:
            x = self.temporal(x, self.time_code(times))
        return x

    def encode(
        self,
        stream: Tensor,  # (B, L, D)
        modality: int,
        last: Tensor | None = None,  # (B,)
    ) -> Tensor:  # (B, L, D), or (B, D) where last is given
        """Run one stream through the encoder of a modality, to the end or at one position."""
        states: Tensor = self.encoders[modality](stream, last)
        return states


def made_candidates(model: nn.Module, catalogue: Streams) -> dict[str, Tensor]:
    """Candidates for ``forward``, of a model whose candidates are worth keeping."""
    if isinstance(model, CAMMSR) and model.config.candidates == "enriched":
        return {"candidates": model.candidates(catalogue)}
    return {}


def last_position(valid: Tensor) -> Tensor:  # (B, L) -> (B,)
    """The last real position of every row; 0 where there is none."""
    return (valid.sum(-1) - 1).clamp(min=0)


def last_valid(x: Tensor, valid: Tensor) -> Tensor:  # (B, L, W), (B, L) -> (B, W)
    """What stands at the last real position of every row."""
    return x[torch.arange(len(x), device=x.device), last_position(valid)]
