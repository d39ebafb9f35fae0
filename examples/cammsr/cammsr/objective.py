"""The weighted sum of losses; nothing else multiplies one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cammsr.batches import Batch, known_items, trained_positions
from cammsr.config import ObjectiveConfig
from cammsr.hm4sr import HM4SR
from cammsr.memory import Memory, memory_of
from cammsr.model import CAMMSR, RecommenderOutput, last_position
from cammsr.negatives import Negatives, NegativeSampler, read_part
from cammsr.next_item import chunked_cross_entropy, full_cross_entropy, sampled_cross_entropy
from cammsr.processes import mean_over_all, process
from cammsr.time_code import time_arguments
from mmfuse import ModalitySwapInfoNCE

__all__ = ["Objective"]

ESTIMATED = ("sampled", "in_batch")


class Objective(nn.Module):
    """Next-item cross entropy over the whole catalogue, contrast and category (Eq. 16-20).

    In several processes each has a part of the batch, and the mean over them, of losses and of
    gradients, is that of the whole batch.

    Args:
        config: The weights and options.
        pairs: The modalities to contrast, all pairs by default.
        counts: How often each item occurs in training, (V,), for a softmax that is estimated.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        counts: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.sampler = _sampler(config, counts)
        self.swap = ModalitySwapInfoNCE(
            config.swap_probability,
            pairs=pairs,
            temperature=config.contrast_temperature,
            symmetric=config.contrast_symmetric,
            gather=True,
        )

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The losses by name, unweighted, and ``"loss"``, their weighted sum."""
        more = time_arguments(model, batch.times)
        if isinstance(model, HM4SR):  # it has losses of its own
            more["targets"] = batch.targets
        if self.sampler is None:
            if self.config.softmax in ESTIMATED:
                raise ValueError(f"Expected counts with softmax {self.config.softmax!r}, got None.")
            output: RecommenderOutput = model(batch.items, batch.valid, **more)
            next_item = self._next_item(output, batch, memory_of(model))
        else:
            if isinstance(model, HM4SR) and process()[1] > 1:
                raise ValueError(
                    "Expected softmax 'full' or 'chunked' for hm4sr in several processes, got "
                    f"{self.config.softmax!r}: its contrasts compare targets between them."
                )
            negatives = self.sampler(batch.targets[trained_positions(batch)])
            output, next_item = self._estimated(model, batch, negatives, more)
        losses = {"next_item": next_item, **output.losses}
        if "category" in losses and isinstance(model, CAMMSR | HM4SR):
            count = categories_counted(model, output, batch)
            losses["category"] = mean_over_all(losses["category"], count)
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

    def _next_item(self, output: RecommenderOutput, batch: Batch, memory: Memory | None) -> Tensor:
        trained = trained_positions(batch)
        entropy: Callable[..., Tensor] = full_cross_entropy
        if self.config.softmax == "chunked":
            entropy = chunked_cross_entropy
        elif memory is not None:
            added = memory.along(batch.items, batch.valid, known_items(batch), trained)
            entropy = partial(full_cross_entropy, added=added)
        with torch.autocast(output.states.device.type, enabled=False):  # scores in 32 bits
            loss = entropy(
                output.states[trained].float(),
                output.candidates.float(),
                batch.targets[trained],
                blend=output.blend,
                label_smoothing=self.config.label_smoothing,
            )
        return mean_over_all(loss, trained.sum())

    def _estimated(
        self,
        model: nn.Module,
        batch: Batch,
        negatives: Negatives,
        more: dict[str, Tensor | None],
    ) -> tuple[RecommenderOutput, Tensor]:
        """The model's output where it knows some items only, and the loss by these."""
        output, local, places = read_part(model, batch, negatives.items, more)
        trained = trained_positions(batch)
        with torch.autocast(output.states.device.type, enabled=False):
            loss = sampled_cross_entropy(
                output.states[trained].float(),
                output.candidates.float(),
                local.targets[trained],
                negatives._replace(items=places),
                blend=output.blend,
            )
        return output, mean_over_all(loss, trained.sum())


def categories_counted(model: CAMMSR | HM4SR, output: RecommenderOutput, batch: Batch) -> Tensor:
    """How many values the category loss is the mean of."""
    counted = batch.valid & model.labels.any(-1)[batch.items]  # (B, L)
    if output.present is not None:  # one a modality
        return (counted.unsqueeze(-1) & output.present).sum()
    return counted.sum()


def _sampler(config: ObjectiveConfig, counts: Tensor | None) -> NegativeSampler | None:
    if config.softmax not in ESTIMATED or counts is None:
        return None
    return NegativeSampler(counts, config.num_sampled if config.softmax == "sampled" else 0)
