"""When items were taken, as a model reads it: buckets of intervals, codes, and experts of time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "IntervalEmbedding",
    "TemporalMixture",
    "TimeCode",
    "interval_buckets",
    "reads_times",
    "time_arguments",
    "times_or_positions",
]

INTERVALS = 4096  # buckets: the last begins at 2 ** 40.95
YEAR = 31_557_600  # seconds
TEMPORAL_EXPERTS = 4


def reads_times(model: nn.Module) -> bool:
    """Whether a model takes ``times``: one that does says so by an attribute of this name."""
    return bool(getattr(model, "reads_times", False))


def time_arguments(model: nn.Module, times: Tensor | None) -> dict[str, Tensor | None]:
    """What a call of the model gets beside the items: the times, if it takes any."""
    return {"times": times} if reads_times(model) else {}


def times_or_positions(items: Tensor, times: Tensor | None) -> Tensor:  # (B, L) -> (B, L)
    """The times of some items; their positions, where no times are known."""
    if times is None:
        return torch.arange(items.shape[1], device=items.device).expand(items.shape)
    return times


def interval_buckets(times: Tensor) -> Tensor:  # (B, L) int64 -> (B, L) int64
    r"""How long after the one before it each item was taken, in buckets.

    .. math:: \lfloor 100 \log_2(t_l - t_{l-1} + 1) \rfloor

    The interval of the first position is 0, and so is one that would be negative.
    """
    passed = times.diff(dim=1, prepend=times[:, :1]).clamp(min=0)
    return (100 * torch.log2(passed.double() + 1)).floor().long().clamp(max=INTERVALS - 1)


class IntervalEmbedding(nn.Module):
    """A learned vector for each bucket of intervals; zero at first, so that nothing changes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(INTERVALS, dim))

    def forward(self, times: Tensor) -> Tensor:  # (B, L) int64 -> (B, L, D)
        """The vector of every position's interval; what comes out at padding is meaningless."""
        return F.embedding(interval_buckets(times), self.weight)


class TimeCode(nn.Module):
    r"""When an item was taken, and how long after the one before it.

    .. math::
        \mathbf{c}_l = \bigl[\mathrm{Emb}(\lfloor 100 \log_2(t_l - t_{l-1} + 1) \rfloor);
        \cos\bigl((w_j t_l + b_j) \, 10000^{-j/D}\bigr)_{j=0}^{D-1}\bigr]

    The first position's interval is 0. The cosine takes t in years, which is the same formula with
    other weights: in seconds, one step of Adam would turn it hundreds of thousands of radians.
    """

    frequency: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.intervals = nn.Embedding(INTERVALS, dim)
        self.moment = nn.Linear(1, dim)
        frequency = 10000.0 ** (-torch.arange(dim) / dim)
        self.register_buffer("frequency", frequency, persistent=False)
        nn.init.normal_(self.intervals.weight, std=0.02)

    def forward(self, times: Tensor) -> Tensor:  # (B, L) int64 -> (B, L, 2 D)
        """The code of every position; what comes out at padding is meaningless."""
        years = (times.double() / YEAR).to(self.frequency.dtype).unsqueeze(-1)
        moment = torch.cos(self.moment(years) * self.frequency)
        return torch.cat([self.intervals(interval_buckets(times)), moment], dim=-1)


class TemporalMixture(nn.Module):
    r"""Experts that scale every feature of all streams, weighed by the time.

    .. math::
        \hat{\mathbf{x}} = \sum_{e=1}^{E} \operatorname{softmax}(\mathbf{U} \mathbf{c} +
        \mathbf{b})_e \, \mathbf{v}_e \odot [\mathbf{x}_1; \ldots; \mathbf{x}_M]

    The experts start around one, by ``spread``, so that the streams pass at first. All of them are
    trained: those of the authors' code lie in a plain list, which no optimizer sees.
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        num_experts: int = TEMPORAL_EXPERTS,
        *,
        spread: float = 0.1,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, num_experts)
        self.experts = nn.Parameter(torch.empty(num_experts, num_modalities, dim))
        nn.init.normal_(self.experts, mean=1.0, std=spread)

    def forward(
        self,
        x: Tensor,  # (B, L, M, D)
        code: Tensor,  # (B, L, 2 D)
    ) -> Tensor:  # (B, L, M, D)
        """The scaled streams; what is zero stays zero."""
        weights = torch.softmax(self.gate(code), dim=-1)
        return x * torch.einsum("ble,emd->blmd", weights, self.experts)
