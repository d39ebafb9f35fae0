"""Several processes of gloo on this machine, for tests of what happens between them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

__all__ = ["together"]


def _work(
    rank: int, processes: int, folder: str, task: Callable[..., Any], *arguments: Any
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    torch.save(task(rank, *arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # A thread of gloo that drops its last tensor while the interpreter shuts down aborts the
    # process (pytorch/pytorch#190489): leave without a shutdown, all is written.
    os._exit(0)


def together(folder: Path, processes: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What the task returns in each of several processes."""
    given = (processes, str(folder), task, *arguments)
    multiprocessing.spawn(_work, given, nprocs=processes)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
