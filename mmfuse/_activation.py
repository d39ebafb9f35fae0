"""What stands between the two layers of an expert, with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "Activation"]


class Activation(NamedTuple):
    """A nonlinearity, its derivative, and whether it is multiplied with a second projection."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]  #: (gradient, input) -> gradient of the input
    gated: bool = False

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., F)``, or ``(..., 2F)`` if gated, to ``(..., F)``."""
        if not self.gated:
            return self.function(hidden)
        gate, value = hidden.chunk(2, dim=-1)
        return self.function(gate) * value

    def backward(self, gradient: Tensor, hidden: Tensor) -> Tensor:
        """The gradient of ``hidden``."""
        if not self.gated:
            return self.derivative(gradient, hidden)
        gate, value = hidden.chunk(2, dim=-1)
        of_gate = self.derivative(gradient * value, gate)
        return torch.cat([of_gate, gradient * self.function(gate)], dim=-1)


def _gelu_derivative(gradient: Tensor, hidden: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward(gradient, hidden)
    return result


def _relu_derivative(gradient: Tensor, hidden: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward(gradient, hidden, 0)
    return result


def _silu_derivative(gradient: Tensor, hidden: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.silu_backward(gradient, hidden)
    return result


#: By name: GELU, ReLU and SiLU, and their gated forms.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": Activation(F.gelu, _gelu_derivative),
    "relu": Activation(F.relu, _relu_derivative),
    "silu": Activation(F.silu, _silu_derivative),
    "geglu": Activation(F.gelu, _gelu_derivative, gated=True),
    "reglu": Activation(F.relu, _relu_derivative, gated=True),
    "swiglu": Activation(F.silu, _silu_derivative, gated=True),
}
