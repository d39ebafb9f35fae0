"""The training loop's view of a recommender: one step, one validation, one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from cammsr.averaging import MovingAverage
from cammsr.batches import Batch, TargetBatch
from cammsr.config import TrainingConfig
from cammsr.metrics import RankingMetrics
from cammsr.objective import Objective
from cammsr.processes import process, total_over_all
from cammsr.scoring import ModelScorer

__all__ = ["MONITOR", "RecommenderModule"]

MONITOR = "validation/ndcg@10"
"""What early stopping and the choice of the checkpoint look at."""


class RecommenderModule(LightningModule):
    """A recommender and its objective. The test split never comes here.

    Where weights are averaged, the model has the averages during a validation, until it ends.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, config: TrainingConfig, seed: int = 0
    ) -> None:
        super().__init__()
        self.seed = seed
        self.model = model
        self.objective = objective
        self.config = config
        self.average = MovingAverage(model, config.average) if config.average else None
        self.metrics = RankingMetrics()
        self.scorer: ModelScorer | None = None

    def configure_model(self) -> None:
        """Keep a part of every weight in each process, if it is asked for.

        Within a step all weights are in all processes.
        """
        if self.config.strategy != "fsdp" or process()[1] == 1 or isinstance(self, FSDPModule):
            return
        assert self.device_mesh is not None  # the strategy's
        fully_shard(self, mesh=self.device_mesh["data_parallel"])
        for method in ("training_step", "validation_step"):
            register_fsdp_forward_method(self, method)
        if self.average is not None:  # of the parts
            self.average = MovingAverage(self.model, self.config.average)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw from a seed of this step: what a step draws does not depend on those before it.

        Each process has rows of its own, and so draws of its own for them; what all of them must
        draw alike comes from the first.
        """
        torch.manual_seed(1_000_003 * self.seed + self.global_step + process()[0] * 2**48)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of losses; all of them are logged by epoch."""
        losses: dict[str, Tensor] = self.objective(self.model, batch)
        rows = total_over_all(len(batch.items), batch.items.device)
        for name, loss in losses.items():
            self.log(
                f"train/{name}",
                loss.detach(),
                on_epoch=True,
                on_step=False,
                batch_size=rows,
                sync_dist=process()[1] > 1,
            )
        return losses["loss"]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """One step, and the averages after it."""
        super().optimizer_step(*arguments, **options)
        if self.average is not None:
            self.average.update(self.model, self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Forget the users of the last validation, and take the averages."""
        self.metrics.reset()
        self._exchange()

    def validation_step(self, batch: TargetBatch, batch_idx: int) -> None:
        """Rank the validation targets of some users over the whole catalogue, in 32 bits."""
        with torch.autocast(self.device.type, enabled=False):
            if self.scorer is None:  # the catalogue is projected once for the whole validation
                self.scorer = ModelScorer(self.model)
            if not len(batch.target):
                return  # the batch has fewer rows than there are processes
            scores = self.scorer.scores(batch.items, batch.valid, batch.times)
        self.metrics.update(scores, batch.target)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all users."""
        for name, value in self.metrics.compute().items():
            self.log(
                f"validation/{name}",
                value.float(),
                prog_bar=f"validation/{name}" == MONITOR,
                sync_dist=process()[1] > 1,  # the same in all of them
            )
        self.scorer = None

    def on_validation_end(self) -> None:
        """Go on with the weights that were trained; whoever keeps the best ones has been here."""
        self._exchange()

    def _exchange(self) -> None:
        """The averages for the weights, or these again."""
        if self.average is None:
            return
        if isinstance(self, FSDPModule):
            self.reshard()  # whole weights of the last step are let go
        self.average.exchange(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with decoupled weight decay if any."""
        return torch.optim.AdamW(
            self.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
