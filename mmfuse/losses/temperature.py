"""A temperature that is learned, within bounds."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse._checks import check_at_most, check_positive
from mmfuse._precision import at_least_float32, check_no_tangent

__all__ = ["LearnedTemperature"]


class LearnedTemperature(nn.Module):
    r"""A learned temperature, as in :cite:`radford2021clip`.

    .. math::
        \tau = \exp(\mathrm{clamp}(\theta, \log \tau_{\min}, \log \tau_{\max}))

    The logarithm :math:`\theta` is the parameter, so that the temperature stays positive and a step
    changes it by a ratio. A lowest temperature of 0.01 is CLIP's greatest logit scale of 100. To be
    handed to :class:`~mmfuse.losses.InfoNCELoss`, or called for a number to divide logits by.

    .. note::
        CLIP clamps the parameter after each step; here it is the temperature, so that ``forward``
        changes nothing. Beyond a bound the parameter gets the gradient that leads back inside,
        and none that leads further out. A plain clamp would have none at all, and stay there.
        Leave the parameter out of weight decay, which pulls the temperature towards 1.

    Args:
        temperature: Where it starts.
        minimum: Lowest temperature :math:`\tau_{\min} > 0`.
        maximum: Highest temperature; ``None`` sets no bound.

    Shape:
        - output: scalar, in float32 at least

    Raises:
        ValueError: If a number is not positive, or the start is not within the bounds.

    Example:
        >>> LearnedTemperature(0.5)()
        tensor(0.5000, grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        minimum: float = 0.01,
        maximum: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, minimum=minimum)
        if temperature < minimum:
            raise ValueError(f"Expected temperature >= minimum = {minimum}, got {temperature}.")
        if maximum is not None:
            check_at_most("maximum", maximum, temperature=temperature)
        self.temperature = temperature
        self.minimum = minimum
        self.maximum = maximum
        self.log_temperature = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start again."""
        nn.init.constant_(self.log_temperature, math.log(self.temperature))

    def forward(self) -> Tensor:  # ()
        """Return the temperature."""
        highest = math.inf if self.maximum is None else math.log(self.maximum)
        wide = self.log_temperature.squeeze(0).to(at_least_float32(self.log_temperature))
        check_no_tangent("A temperature with bounds", wide)
        bounded: Tensor = _clamp(wide, math.log(self.minimum), highest)
        return bounded.exp()

    def extra_repr(self) -> str:
        return f"{self.temperature}, minimum={self.minimum}, maximum={self.maximum}"


@torch.library.custom_op("mmfuse::clamp_with_way_back", mutates_args=())
def _clamp(x: Tensor, lowest: float, highest: float) -> Tensor:
    return x.clamp(lowest, highest)


@_clamp.register_fake
def _(x: Tensor, lowest: float, highest: float) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
    x, *ctx.bounds = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """A step goes against the gradient: beyond the upper bound a negative one leads further."""
    (x,), (lowest, highest) = ctx.saved_tensors, ctx.bounds
    further = ((x > highest) & (gradient < 0)) | ((x < lowest) & (gradient > 0))
    return gradient.masked_fill(further, 0), None, None


_clamp.register_autograd(_gradient, setup_context=_setup)
