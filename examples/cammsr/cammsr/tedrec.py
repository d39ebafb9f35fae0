"""TedRec: a history's spectra of features, multiplied with that of the ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.items import ID, look_up, make_items
from cammsr.model import RecommenderOutput
from mmfuse.fusion import FrequencyFusion, WhiteningFusion
from mmfuse.types import Streams

__all__ = ["TedRec"]

TEMPERATURE = 0.07


class TedRec(nn.Module):
    """TedRec (Xu et al., 2024): whitened features meet the ids in their spectra, along a history.

    Each modality beside the id goes through whitening experts, as UniSRec has them, then all
    through :class:`~mmfuse.fusion.FrequencyFusion` and one causal Transformer with LayerNorm.
    States are compared with the ids by cosine / .07; without ids the first modality stands in.
    """

    def __init__(self, features: Mapping[str, Tensor], labels: Tensor, config: ModelConfig) -> None:
        super().__init__()
        config = replace(config, norm="layernorm")
        self.items = make_items(features, labels, config)
        names = self.items.names
        self.target = names.index(ID) if ID in names else 0
        self.adaptors = nn.ModuleList(
            nn.Identity() if name == ID else WhiteningFusion(config.dim, 1) for name in names
        )
        self.fusion = FrequencyFusion(
            config.dim, len(names), target=self.target, max_length=config.max_length
        )
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
        streams = self._whitened(self.items() if catalogue is None else catalogue)
        x, present = look_up(streams, items)
        fused = 2 * self.fusion(x, present, valid=valid).fused  # a gate starts at one
        states = self.encoder(fused + self.positions[: items.shape[1]])
        return RecommenderOutput(
            normalize(states, dim=-1) / TEMPERATURE,
            normalize(streams.x[:, self.target], dim=-1),
            {},
            None,
            None,
        )

    def _whitened(self, catalogue: Streams) -> Streams:  # (V, M, D)
        x, present = catalogue
        adapted = [
            x[:, m] if isinstance(adaptor, nn.Identity) else adaptor(x[:, m : m + 1]).fused
            for m, adaptor in enumerate(self.adaptors)
        ]
        return Streams(torch.stack(adapted, dim=1), present)
