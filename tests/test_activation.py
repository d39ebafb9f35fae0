"""Tests for mmfuse._activation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mmfuse._activation import ACTIVATIONS
from tests.outcomes import assert_same
from tests.strategies import seeds, sizes

FORMULAS: dict[str, Callable[[float], float]] = {
    "gelu": lambda u: u * (1 + math.erf(u / math.sqrt(2))) / 2,
    "relu": lambda u: max(u, 0.0),
    "silu": lambda u: u / (1 + math.exp(-u)),
}
UNGATED = {"geglu": "gelu", "reglu": "relu", "swiglu": "silu"}
names = pytest.mark.parametrize("name", sorted(ACTIVATIONS))


def naive(name: str, hidden: Tensor) -> Tensor:
    """The formula, number by number."""
    if name not in UNGATED:
        values = [FORMULAS[name](u) for u in hidden.flatten().tolist()]
        return hidden.new_tensor(values).reshape(hidden.shape)
    half = hidden.shape[-1] // 2
    return naive(UNGATED[name], hidden[..., :half]) * hidden[..., half:]


def inputs(name: str, rows: int, width: int) -> Tensor:
    wide = 2 * width if ACTIVATIONS[name].gated else width
    return 2 * torch.randn(rows, wide, dtype=torch.float64)


def test_there_are_three_and_their_gated_forms() -> None:
    gated = {name for name, activation in ACTIVATIONS.items() if activation.gated}
    assert gated == set(UNGATED)
    assert set(ACTIVATIONS) - gated == set(FORMULAS)


@names
@given(seeds, sizes, sizes)
def test_forward_is_the_formula(name: str, seed: int, rows: int, width: int) -> None:
    torch.manual_seed(seed)
    hidden = inputs(name, rows, width)
    torch.testing.assert_close(ACTIVATIONS[name].forward(hidden), naive(name, hidden))


@names
@given(seeds, sizes, sizes)
def test_backward_is_what_autograd_says(name: str, seed: int, rows: int, width: int) -> None:
    torch.manual_seed(seed)
    hidden = inputs(name, rows, width).requires_grad_()
    output = ACTIVATIONS[name].forward(hidden)
    gradient = torch.randn_like(output)
    (wanted,) = torch.autograd.grad(output, hidden, gradient)
    torch.testing.assert_close(ACTIVATIONS[name].backward(gradient, hidden.detach()), wanted)


@names
def test_no_rows_are_no_work(name: str) -> None:
    hidden = inputs(name, 0, 3)
    assert_same(ACTIVATIONS[name].forward(hidden), hidden.new_zeros(0, 3))
    assert_same(ACTIVATIONS[name].backward(hidden.new_zeros(0, 3), hidden), hidden)


@pytest.mark.parametrize(("gated", "plain"), sorted(UNGATED.items()))
def test_the_first_half_is_the_gate(gated: str, plain: str) -> None:
    gate, value = torch.randn(2, 5, 3, dtype=torch.float64)
    hidden = torch.cat([gate, value], dim=-1)
    ones, zeros = torch.ones_like(value), torch.zeros_like(value)
    phi = ACTIVATIONS[plain].forward(gate)
    assert_same(ACTIVATIONS[gated].forward(hidden), phi * value)
    assert_same(ACTIVATIONS[gated].forward(torch.cat([gate, ones], -1)), phi)
    of_gate, of_value = ACTIVATIONS[gated].backward(ones, hidden).chunk(2, dim=-1)
    assert_same(of_value, phi)
    assert_same(of_gate, ACTIVATIONS[plain].backward(value, gate))
    of_gate, _ = ACTIVATIONS[gated].backward(ones, torch.cat([gate, zeros], -1)).chunk(2, dim=-1)
    assert not of_gate.any()
