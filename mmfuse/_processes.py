"""One batch spread over processes: where its rows are, and sums over all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

__all__ = ["Processes", "processes"]


class Processes(NamedTuple):
    """More than one process, and how many rows each of them holds."""

    group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def start(self) -> int:
        """The place of this process's first row among all rows."""
        return sum(self.sizes[: self.rank])

    def rows(self, x: Tensor) -> Tensor:
        """The rows of all processes, in their order; gradients add up over the processes."""
        gather: Any = _Rows.apply
        gathered: Tensor = gather(x, self)
        return gathered

    def some_rows(self, x: Tensor | None) -> Tensor | None:
        """The same of what may be missing."""
        return None if x is None else self.rows(x)

    def total(self, x: Tensor) -> Tensor:
        """The sum over the processes, whose gradient a mean over the processes brings back."""
        add: Any = _Total.apply
        total: Tensor = add(x, self)
        return total


def processes(gather: Any, rows: Tensor) -> Processes | None:
    """Those among which rows are spread; ``None`` if there is one, or nothing is to be gathered.

    ``gather`` is true, false or a process group. The rows may be more in one than in another.
    """
    if gather is None or gather is False:
        return None
    if isinstance(gather, str | int) and gather is not True:
        raise ValueError(f"Expected gather as True, False or a process group, got {gather!r}.")
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = None if gather is True else gather
    number = distributed.get_world_size(group)
    if number == 1:
        return None
    size = torch.tensor([rows.shape[0]], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(number)]
    distributed.all_gather(sizes, size, group=group)
    counts = tuple(int(count) for count in torch.cat(sizes).tolist())
    return Processes(group, distributed.get_rank(group), counts)


class _Rows(torch.autograd.Function):
    """All-gather of rows, of which each process may have another number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, those: Processes) -> Tensor:
        ctx.those = those
        sent = x.to(torch.uint8) if x.dtype == torch.bool else x
        padded = sent.new_zeros(max(those.sizes), *x.shape[1:])
        padded[: len(x)] = sent
        parts = [torch.empty_like(padded) for _ in those.sizes]
        distributed.all_gather(parts, padded, group=those.group)
        trimmed = [part[:size] for part, size in zip(parts, those.sizes, strict=True)]
        return torch.cat(trimmed).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        those = ctx.those
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=those.group)
        return total[those.start : those.start + those.sizes[those.rank]], None


class _Total(torch.autograd.Function):
    """A sum over the processes; the gradient is that of the own part, times their number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, those: Processes) -> Tensor:
        ctx.number = len(those.sizes)
        total = x.clone()
        distributed.all_reduce(total, group=those.group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.number, None
