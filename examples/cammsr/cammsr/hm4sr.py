"""HM4SR: experts that read all modalities, experts of time, one causal Transformer a modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from cammsr.config import ModelConfig
from cammsr.encoder import make_encoder
from cammsr.hm4sr_losses import (
    category_loss,
    choose_positions,
    id_contrast,
    placeholder_contrast,
)
from cammsr.items import look_up, make_items
from cammsr.model import RecommenderOutput, last_position, last_valid
from cammsr.time_code import TemporalMixture, TimeCode, times_or_positions
from mmfuse.fusion import InteractiveMixture
from mmfuse.layers import mask_absent
from mmfuse.types import Streams

__all__ = ["HM4SR"]


class HM4SR(nn.Module):
    """HM4SR (Zhang et al., 2025), for any number of modalities.

    Streams of id, text and image, with positions, go through the interactive mixture (as many
    experts as ``config.num_experts``), the temporal mixture, and a Transformer each, always with
    LayerNorm. A score is the sum over the modalities of state times item, the items as they are.

    Given ``targets`` it adds its own losses, unweighted: ``id_contrast``,
    ``placeholder_contrast``, ``category``. Contrasts are taken at the last position. The paper
    trains on prefixes with one target each; here every position is trained in one causal pass.
    Where times are not known, positions stand in for them.
    """

    labels: Tensor
    reads_times = True

    def __init__(
        self,
        features: Mapping[str, Tensor],  # modality -> (V, D_m)
        labels: Tensor,  # (V, C) bool
        config: ModelConfig,
    ) -> None:
        super().__init__()
        config = replace(config, norm="layernorm")  # as its authors have it
        dim, num_categories = config.dim, labels.shape[1]
        self.items = make_items(features, labels, config)
        self.register_buffer("labels", labels, persistent=False)
        modalities = len(self.items.names)
        self.first_other = int(config.use_id)  # the id comes first
        self.positions = nn.Parameter(torch.empty(config.max_length, dim))
        self.interactive = InteractiveMixture(
            dim,
            modalities,
            num_experts=config.num_experts,
            target=0 if config.use_id else None,
        )
        self.time_code = TimeCode(dim)
        self.temporal = TemporalMixture(dim, modalities)
        self.encoders = nn.ModuleList(make_encoder(config) for _ in range(modalities))
        self.placeholders = nn.ModuleList(
            nn.Linear(2 * dim, dim) for _ in range(modalities - self.first_other)
        )
        self.head = nn.Linear(modalities * dim, num_categories) if num_categories else None
        nn.init.normal_(self.positions, std=config.first_scale)

    def forward(
        self,
        items: Tensor,  # (B, L)
        valid: Tensor,  # (B, L)
        catalogue: Streams | None = None,  # (V, M, D)
        *,
        times: Tensor | None = None,  # (B, L) int64
        targets: Tensor | None = None,  # (B, L)
    ) -> RecommenderOutput:
        """Read histories, padded on the right; ``catalogue`` spares projecting it again."""
        x, observed = self.items() if catalogue is None else catalogue
        catalogue = Streams(mask_absent(x, observed), observed)
        code = self.time_code(times_or_positions(items, times))
        x, present = look_up(catalogue, items)
        told = self.interactive(x + self.positions[: items.shape[1], None, :], present).x
        streams = self.temporal(told, code)
        states = torch.stack(
            [encode(s) for encode, s in zip(self.encoders, streams.unbind(-2), strict=True)], -2
        )
        losses = {}
        if targets is not None:
            last = last_position(valid)
            target = targets.gather(1, last.unsqueeze(1)).squeeze(1)
            losses = {
                **self._id_contrast(catalogue, states, valid, target),
                **self._placeholder_contrast(
                    Streams(streams, present), states, code, valid, target
                ),
                **self._category(catalogue, items, valid),
            }
        candidates = catalogue.x.flatten(-2)
        return RecommenderOutput(states.flatten(-2), candidates, losses, None, None)

    def _id_contrast(
        self, catalogue: Streams, states: Tensor, valid: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        if self.first_other == 0:
            return {}
        state = last_valid(states[..., 0, :], valid)
        return {"id_contrast": id_contrast(state, catalogue.x[:, 0], target, valid.any(1))}

    def _placeholder_contrast(
        self, read: Streams, states: Tensor, code: Tensor, valid: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        first, last = self.first_other, last_position(valid)
        if len(self.encoders) == first:
            return {}
        loss = placeholder_contrast(
            Streams(read.x[..., first:, :], read.present[..., first:]),
            last_valid(states, valid)[:, first:],
            torch.stack([make(code) for make in self.placeholders], dim=-2),
            lambda stream, s: self.encoders[first + s](stream, last),
            chosen=choose_positions(valid),
            valid=valid,
            target=target,
        )
        return {"placeholder_contrast": loss}

    def _category(self, catalogue: Streams, items: Tensor, valid: Tensor) -> dict[str, Tensor]:
        if self.head is None:
            return {}
        return {"category": category_loss(self.head, catalogue.x, self.labels, items, valid)}
