"""One global batch over several processes: who they are, and means over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor, distributed

from cammsr.config import TrainingConfig

__all__ = [
    "agreed",
    "agreed_path",
    "mean_over_all",
    "process",
    "share_of_all",
    "started",
    "total_over_all",
    "wait_for_all",
]

PATIENCE = timedelta(hours=2)  # the first process evaluates while the others wait


def process() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` for one alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextmanager
def started(config: TrainingConfig) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; only the first one prints.

    Raises:
        ValueError: there are not as many as the settings say.
    """
    by_torchrun = distributed.is_available() and distributed.is_torchelastic_launched()
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else 1
    nodes = int(os.environ["WORLD_SIZE"]) // devices if by_torchrun else 1
    for name, asked, there in (
        ("devices", config.devices, devices),
        ("num_nodes", config.num_nodes, nodes),
    ):
        if asked not in {None, there}:
            raise ValueError(
                f"Expected {there} for training.{name}, as this was started, got {asked}. Start "
                "with torchrun --nnodes NODES --nproc-per-node DEVICES."
            )
    if not by_torchrun or distributed.is_initialized():
        yield
        return
    on_gpus = torch.cuda.is_available() and config.accelerator != "cpu"
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # One backend by its name: the trainer takes means of whole numbers as this one can.
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
    try:
        with redirect_stdout(StringIO()) if process()[0] else nullcontext():
            yield
    finally:
        distributed.destroy_process_group()


def agreed_path(path: Path | None) -> Path:
    """The path that the first process has."""
    told = [None if path is None else str(path)]
    if process()[1] > 1:
        distributed.broadcast_object_list(told, src=0)
    assert told[0] is not None  # the first process has one
    return Path(told[0])


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if process()[1] > 1:
        distributed.barrier()


def total_over_all(count: int, device: torch.device) -> int:
    """The sum over the processes."""
    if process()[1] == 1:
        return count
    total = torch.tensor(count, device=device)
    distributed.all_reduce(total)
    return int(total)


def agreed(drawn: Tensor) -> Tensor:
    """What the first process has drawn, in all of them."""
    if process()[1] > 1:
        distributed.broadcast(drawn, src=0)
    return drawn


def share_of_all(count: Tensor) -> Tensor:  # ()
    """What a sum here is multiplied by to become this process's part of the mean over all.

    Processes take the mean of their gradients, so their number is part of it.
    """
    everything = count.clone()
    processes = process()[1]
    if processes > 1:
        distributed.all_reduce(everything)
    return processes / everything.clamp(min=1)


def mean_over_all(mean: Tensor, count: Tensor) -> Tensor:  # () , ()
    """Turn a mean over ``count`` values here into this process's part of the mean over all.

    With one process nothing changes, not in the last bit.
    """
    if process()[1] == 1:
        return mean
    share = (count * share_of_all(count)).to(mean.dtype)
    return torch.where(count > 0, mean, torch.zeros_like(mean)) * share
