"""The weighted sum of losses; nothing else multiplies one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cammsr.batches import Batch
from cammsr.config import ObjectiveConfig
from cammsr.hm4sr import HM4SR
from cammsr.model import CAMMSR, RecommenderOutput, last_position
from mmfuse import ModalitySwapInfoNCE

__all__ = ["Objective"]


class Objective(nn.Module):
    """Next-item cross entropy over the whole catalogue, contrast and category (Eq. 16-20)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.swap = ModalitySwapInfoNCE(
            config.swap_probability,
            temperature=config.contrast_temperature,
            symmetric=config.contrast_symmetric,
        )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, unweighted, and ``"loss"``, their weighted sum."""
        output: RecommenderOutput
        if isinstance(model, HM4SR):
            output = model(batch.items, batch.valid, times=batch.times, targets=batch.targets)
        else:
            output = model(batch.items, batch.valid)
        losses = {"next_item": self._next_item(output, batch), **output.losses}
        weights = {
            "next_item": 1.0,
            "category": self.config.category_weight,
            "id_contrast": self.config.id_contrast_weight,
            "placeholder_contrast": self.config.placeholder_weight,
            "importance": self.config.balance_weight,
            "load": self.config.balance_weight,
            "balance": self.config.balance_weight,
            "z": self.config.z_weight,
        }
        if isinstance(model, CAMMSR) and self.config.contrast_weight > 0:
            losses["contrast"] = self.contrast(model, output, batch)
            weights["contrast"] = self.config.contrast_weight
        for name in losses:
            if name not in weights:
                raise ValueError(f"Expected losses among {sorted(weights)}, got {name!r}.")
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        return {"loss": total, **losses}

    def contrast(self, model: CAMMSR, output: RecommenderOutput, batch: Batch) -> Tensor:
        """Modality-swap contrast at the last position; one target makes no negatives."""
        assert output.enriched is not None  # CAMMSR always enriches
        last = last_position(batch.valid)
        loss: Tensor = self.swap(
            output.enriched.x,
            # a modality's views of all pairs come at once
            lambda views, modality: model.encode(
                views, modality, last.repeat(len(views) // len(last))
            ),
            batch.valid,
            present=output.present,
            ids=batch.targets.gather(1, last.unsqueeze(1)).squeeze(1),
        )
        return loss

    def _next_item(self, output: RecommenderOutput, batch: Batch) -> Tensor:
        logits = output.states[batch.valid] @ output.candidates.T
        return F.cross_entropy(
            logits, batch.targets[batch.valid], label_smoothing=self.config.label_smoothing
        )
