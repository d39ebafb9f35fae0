"""What a training runs on, in the trainer's words."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

from cammsr.config import TrainingConfig
from cammsr.encoder import StreamEncoder
from cammsr.processes import process

__all__ = ["compile_model", "hardware", "use_threads"]

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def hardware(config: TrainingConfig) -> dict[str, Any]:
    """The trainer's arguments: accelerator, processes, strategy and precision.

    Raises:
        ValueError: the machine cannot do what the settings ask for.
    """
    found = "gpu" if torch.cuda.is_available() else "cpu"
    accelerator = found if config.accelerator == "auto" else config.accelerator
    if accelerator == "gpu" and found == "cpu":
        raise ValueError("Expected training.accelerator 'cpu', there is no GPU, got 'gpu'.")
    if accelerator == "cpu" and config.precision == "16":
        raise ValueError(
            "Expected a GPU for training.precision '16', got the CPU: the trainer has it for GPUs "
            "alone."
        )
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process()[1] > 1 else 1
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": process()[1] // devices,
        "strategy": _strategy(config),
        "precision": PRECISIONS[config.precision],
        "use_distributed_sampler": False,  # each process takes its rows of every batch
    }


def use_threads(config: TrainingConfig) -> None:
    """As many threads as are asked for, or as torch has them."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def compile_model(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch compile the model in its place, for batches of any number of rows and length.

    Names of weights stay as they are. Encoders are called by the contrast too, so they are compiled
    by themselves as well.
    """
    for module in model.modules():
        if module is model or isinstance(module, StreamEncoder):
            module.compile(dynamic=True, backend=backend)


def _strategy(config: TrainingConfig) -> str | Strategy:
    if process()[1] == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=process()[1],
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    # Which parameters a step reaches depends on the model; buffers are the same in all processes.
    return DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
