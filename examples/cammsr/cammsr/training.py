"""Train one model: early stopping on validation, the best weights kept, the test touched once."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from cammsr.batches import target_loader, training_loader
from cammsr.config import Config
from cammsr.dataset import Dataset
from cammsr.hardware import compile_model, hardware
from cammsr.keeper import Keeper, best_epoch, is_over
from cammsr.memory import fit_memory
from cammsr.metrics import evaluate
from cammsr.module import MONITOR, RecommenderModule
from cammsr.processes import process, wait_for_all
from cammsr.scoring import ModelScorer
from cammsr.split import Split, Target
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
    test: bool = True,
) -> Trained:
    """Fit a variant and evaluate its best weights; on the test split, unless ``test`` is false.

    Logs, the checkpoint and the weights go below ``folder``. If a training was stopped there, it
    goes on from its checkpoint, and ends with the same weights as if it never had been.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = torch.bincount(split.train.values, minlength=dataset.num_items)
    model, objective = build(variant, dataset, config, counts)
    fit_memory(model, split.train)
    options = config.training
    keeper = Keeper(folder, MONITOR, options.patience, options.checkpoint_steps)
    keeper.read()
    if not is_over(keeper.curve, options.patience, options.max_epochs):
        _fit(
            RecommenderModule(model, objective, options, config.seed),
            split,
            config,
            keeper,
            progress,
        )
    if options.compile or options.strategy == "fsdp":
        model, _ = build(variant, dataset, config)  # as it was before
    wait_for_all()  # the weights are written
    model.load_state_dict(keeper.best(), strict=False)  # without the raw features
    scorer = ModelScorer(model.eval())

    def ranked(target: Target) -> dict[str, float]:
        return evaluate(scorer, target, batch_size=RANKING_BATCH) if process()[0] == 0 else {}

    return Trained(
        name=variant,
        model=model,
        validation=ranked(split.validation),
        test=ranked(split.test) if test else {},
        seconds=keeper.seconds,
        epochs=len(keeper.curve),
        best_epoch=best_epoch(keeper.curve),
        curve=keeper.curve,
    )


def _fit(
    module: RecommenderModule, split: Split, config: Config, keeper: Keeper, progress: bool
) -> None:
    length, options = config.model.max_length, config.training
    loaders = (
        training_loader(
            split.train,
            length,
            options.batch_size,
            config.seed,
            examples=options.examples,
            share=process(),
        ),
        target_loader(split.validation, length, RANKING_BATCH, process()),
    )
    if options.compile:
        compile_model(module.model)
    with _quiet():
        trainer = _trainer(config, keeper, progress)
        stopped = keeper.checkpoint if keeper.checkpoint.is_file() else None
        try:
            trainer.fit(module, *loaders, ckpt_path=stopped, weights_only=True)
        except SystemExit as stop:  # what the trainer makes of Ctrl-C
            raise KeyboardInterrupt from stop


class _ProgressBar(TQDMProgressBar):
    """The trainer's bar, without the loggers' version number."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(*arguments)
        metrics.pop("v_num", None)
        return metrics


class _EpochLines(Callback):
    """A line an epoch, for files and pipes."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counted from one, as the table counts them."""
        if trainer.is_global_zero:
            value = float(trainer.callback_metrics[MONITOR])
            print(f"  epoch {trainer.current_epoch + 1}: {MONITOR} {value:.4f}", flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the trainer says that nobody here can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, adverts
    with warnings.catch_warnings():
        # Batches are cut from tensors in memory: a loader process would cost more than it brings.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # The name that older torch has for what torch 2.13 calls forward_sync_buffers.
        warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")
        # The trainer's own use of a torch interface that torch 2.13 deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield


def _trainer(config: Config, keeper: Keeper, progress: bool) -> Trainer:
    folder, name = keeper.folder, f"run-{_count(keeper.folder)}"
    bar = progress and sys.stdout.isatty()
    shown = [_ProgressBar(refresh_rate=5)] if bar else [_EpochLines()] if progress else []
    return Trainer(
        **hardware(config.training),
        default_root_dir=folder,
        max_epochs=config.training.max_epochs,
        callbacks=[keeper, *shown],
        logger=[
            CSVLogger(folder, name="logs", version=f"csv/{name}"),
            TensorBoardLogger(folder, name="logs", version="tensorboard"),
        ],
        enable_checkpointing=False,  # the keeper's
        enable_model_summary=False,
        enable_progress_bar=bar,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def _count(folder: Path) -> int:
    """How often a training was begun or gone on with here; no table of numbers is written over."""
    return len(list((folder / "logs" / "csv").glob("run-*")))
