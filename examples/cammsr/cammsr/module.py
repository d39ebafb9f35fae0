"""The training loop's view of a recommender: one step, one validation, one optimizer."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cammsr.batches import Batch, TargetBatch
from cammsr.config import TrainingConfig
from cammsr.metrics import RankingMetrics
from cammsr.objective import Objective
from cammsr.scoring import ModelScorer

__all__ = ["MONITOR", "RecommenderModule"]

MONITOR = "validation/ndcg@10"
"""What early stopping and the choice of the checkpoint look at."""


class RecommenderModule(LightningModule):
    """A recommender and its objective. The test split never comes here."""

    def __init__(
        self, model: nn.Module, objective: Objective, config: TrainingConfig, seed: int = 0
    ) -> None:
        super().__init__()
        self.seed = seed
        self.model = model
        self.objective = objective
        self.config = config
        self.metrics = RankingMetrics()
        self.scorer: ModelScorer | None = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw from a seed of this step: what a step draws does not depend on those before it."""
        torch.manual_seed(1_000_003 * self.seed + self.global_step)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of losses; all of them are logged by epoch."""
        losses: dict[str, Tensor] = self.objective(self.model, batch)
        for name, loss in losses.items():
            self.log(
                f"train/{name}",
                loss.detach(),
                on_epoch=True,
                on_step=False,
                batch_size=len(batch.items),
            )
        return losses["loss"]

    def on_validation_epoch_start(self) -> None:
        """Project the catalogue once for the whole validation."""
        self.scorer = ModelScorer(self.model)
        self.metrics.reset()

    def validation_step(self, batch: TargetBatch, batch_idx: int) -> None:
        """Rank the validation targets of some users over the whole catalogue."""
        assert self.scorer is not None  # made at the start of the epoch
        scores = self.scorer.scores(batch.items, batch.valid, batch.times)
        self.metrics.update(scores, batch.target)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all users."""
        for name, value in self.metrics.compute().items():
            self.log(f"validation/{name}", value.float(), prog_bar=f"validation/{name}" == MONITOR)
        self.scorer = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with decoupled weight decay if any."""
        return torch.optim.AdamW(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
