"""Train one model: early stopping on validation, the best weights kept, the test touched once."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import save_file
from torch import nn

from cammsr.batches import target_loader, training_loader
from cammsr.config import Config
from cammsr.dataset import Dataset
from cammsr.metrics import evaluate
from cammsr.module import MONITOR, RecommenderModule
from cammsr.scoring import ModelScorer
from cammsr.split import Split
from cammsr.variants import build

__all__ = ["Trained", "train"]

RANKING_BATCH = 256


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with its best weights, and what is known of it."""

    name: str
    model: nn.Module
    validation: dict[str, float]
    test: dict[str, float]
    seconds: float
    epochs: int
    best_epoch: int
    curve: list[float]  # validation NDCG@10 after every epoch


def train(
    variant: str,
    dataset: Dataset,
    split: Split,
    config: Config,
    folder: Path,
    *,
    progress: bool = True,
) -> Trained:
    """Fit a variant and evaluate its best weights.

    Logs, checkpoints and weights go below ``folder``, which is made.
    """
    model, objective = build(variant, dataset, config)
    module = RecommenderModule(model, objective, config.training)
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", "best", monitor=MONITOR, mode="max", save_weights_only=False
    )
    with _quiet():
        trainer = _trainer(config, folder, checkpoint, progress)
    length = config.model.max_length
    start = time.perf_counter()
    loaders = (
        training_loader(split.train, length, config.training.batch_size, config.seed),
        target_loader(split.validation, length, RANKING_BATCH),
    )
    with _quiet():
        try:
            trainer.fit(module, *loaders)
        except SystemExit as stop:  # what the trainer makes of Ctrl-C
            raise KeyboardInterrupt from stop
    seconds = time.perf_counter() - start
    best = torch.load(checkpoint.best_model_path, weights_only=True)
    module.load_state_dict(best["state_dict"])
    save_file(_weights(model), folder / "weights.safetensors")
    log = pl.read_csv(folder / "logs" / "csv" / "metrics.csv")
    curve = log[MONITOR].drop_nulls().to_list()
    scorer = ModelScorer(model.eval())
    return Trained(
        name=variant,
        model=model,
        validation=evaluate(scorer, split.validation, batch_size=RANKING_BATCH),
        test=evaluate(scorer, split.test, batch_size=RANKING_BATCH),
        seconds=seconds,
        epochs=len(curve),
        best_epoch=int(best["epoch"]),
        curve=curve,
    )


class _ProgressBar(TQDMProgressBar):
    """The trainer's bar, without the loggers' version number."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(*arguments)
        metrics.pop("v_num", None)
        return metrics


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the trainer says that nobody here can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, adverts
    with warnings.catch_warnings():
        # Batches are cut from tensors in memory: a loader process would cost more than it brings.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # The trainer's own use of a torch interface that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield


def _trainer(config: Config, folder: Path, checkpoint: ModelCheckpoint, progress: bool) -> Trainer:
    stop = EarlyStopping(MONITOR, patience=config.training.patience, mode="max")
    return Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=1,
        default_root_dir=folder,
        max_epochs=config.training.max_epochs,
        callbacks=[stop, checkpoint, *([_ProgressBar(refresh_rate=5)] if progress else [])],
        logger=[
            CSVLogger(folder, name="logs", version="csv"),
            TensorBoardLogger(folder, name="logs", version="tensorboard"),
        ],
        enable_model_summary=False,
        enable_progress_bar=progress,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Everything needed to load the model again, except for the frozen raw features."""
    state = model.state_dict()
    return {name: value.contiguous() for name, value in state.items() if ".tables." not in name}
