"""The moving average of a model's weights: what is evaluated and kept, while the others train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["MovingAverage"]


class MovingAverage(nn.Module):
    r"""The exponential moving average of all weights, updated after every step.

    .. math::
        \bar{w} \leftarrow d_n \bar{w} + (1 - d_n) w, \qquad
        d_n = \min\left(d, \frac{1 + n}{10 + n}\right)

    where n counts the steps before, so that the first weights are soon forgotten. The averages are
    buffers: they move and are saved with whatever owns this.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for number, weight in enumerate(model.parameters()):
            self.register_buffer(str(number), weight.detach().clone())

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Take in the weights after one more step; there were ``steps`` before it."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        weights: list[Tensor | nn.Parameter] = [weight.detach() for weight in model.parameters()]
        get_ema_multi_avg_fn(decay)(list(self.buffers()), weights, steps)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Give the model the averages, and keep its weights in their place; or take them back."""
        for average, weight in zip(self.buffers(), model.parameters(), strict=True):
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)
