"""What a training keeps while it runs: the best weights, and where to go on if it is stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

__all__ = ["BrokenFileError", "Keeper", "best_epoch", "is_over", "weights"]


def best_epoch(curve: Sequence[float]) -> int:
    """The first epoch of the highest value; one that is not a number is the lowest."""
    return max(range(len(curve)), key=lambda epoch: (_comparable(curve[epoch]), -epoch))


def is_over(curve: Sequence[float], patience: int, max_epochs: int) -> bool:
    """Whether there is nothing left to train: too long without a better epoch, or all epochs."""
    if not curve:
        return False
    waited = len(curve) - 1 - best_epoch(curve)
    return waited >= patience or len(curve) >= max_epochs or not math.isfinite(curve[-1])


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a model's state, all that is needed to load it again, except for frozen raw features."""
    return {name: value.contiguous() for name, value in state.items() if ".tables." not in name}


class BrokenFileError(OSError):
    """A file of a stopped training cannot be read; the message says what to do."""


class Keeper(Callback):
    """Stops early, keeps the best weights, and writes a checkpoint after every epoch.

    The trainer's own callbacks for this know of themselves what they did before a stop, not
    whether it was the last thing to do; here all follows from the curve, which the checkpoint has.
    A file is complete or not there: it is written beside its place and then moved.

    Args:
        folder: Where the files go.
        monitor: The metric, the higher the better.
        patience: Epochs without a better one before the training stops.
        every: Steps between further checkpoints; none by default.
    """

    def __init__(self, folder: Path, monitor: str, patience: int, every: int | None = None) -> None:
        self.folder = folder
        self.monitor = monitor
        self.patience = patience
        self.every = every
        self.curve: list[float] = []
        self.seconds = 0.0
        self._since = time.perf_counter()

    @property
    def weights(self) -> Path:
        """The best weights so far."""
        return self.folder / "weights.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where to go on."""
        return self.folder / "last.ckpt"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are better than all before."""
        self.curve.append(float(trainer.callback_metrics[self.monitor]))
        if best_epoch(self.curve) == len(self.curve) - 1:
            state = trainer.strategy.lightning_module_state_dict()  # by all processes together
            if trainer.is_global_zero:
                beside = self.weights.with_suffix(".part")
                beside.write_bytes(save(weights(_of_model(state))))  # a file has its user's mode
                beside.replace(self.weights)
        if is_over(self.curve, self.patience, trainer.max_epochs or len(self.curve)):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where to go on."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The same within an epoch, if it is asked for."""
        if self.every is None or trainer.global_step % self.every or trainer.is_last_batch:
            return  # after the last batch the epoch is not over: the validation is still to come
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The curve and the time, for the checkpoint."""
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        return {"curve": list(self.curve), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the checkpoint has them."""
        self.curve, self.seconds = list(state_dict["curve"]), state_dict["seconds"]
        self._since = time.perf_counter()

    def read(self) -> None:
        """Take the state of the checkpoint, if there is one.

        Raises:
            BrokenFileError: it cannot be read.
        """
        if not self.checkpoint.is_file():
            return
        try:
            saved = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            self.load_state_dict(saved["callbacks"][self.state_key])
        except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
            raise BrokenFileError(_advice(self.checkpoint)) from error

    def best(self) -> dict[str, Tensor]:
        """The best weights.

        Raises:
            BrokenFileError: they are not there, or cannot be read.
        """
        try:
            return load_file(self.weights)
        except (FileNotFoundError, SafetensorError) as error:
            raise BrokenFileError(_advice(self.weights)) from error

    def _save(self, trainer: Trainer) -> None:
        beside = self.checkpoint.with_suffix(".part")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            beside.replace(self.checkpoint)


def _of_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of what the trainer's module knows."""
    own = [name for name in state if name.startswith("model.")]
    return {name.removeprefix("model."): state[name] for name in own}


def _advice(file: Path) -> str:
    return f"{file} cannot be read. Delete {file.parent} to train this model from the start."


def _comparable(value: float) -> float:
    return -math.inf if math.isnan(value) else value
