"""Tests for mmfuse.layers.modality_linear."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.layers import ModalityLinear
from mmfuse.testing import assert_block_contract
from mmfuse.types import Streams
from tests.outcomes import drawn, places
from tests.references import naive_linear
from tests.strategies import streams


@settings(max_examples=25)
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    for bias in (True, False):
        layer = drawn(ModalityLinear(num_modalities, dim, 3, bias=bias))
        y = layer(case.x)
        for place in places(case.x.shape[:-1]):
            m = place[-1]
            wanted = naive_linear(layer.weight[m].tolist(), case.x[place].tolist())
            shift = layer.bias[m].detach() if bias else 0.0
            torch.testing.assert_close(y[place], torch.tensor(wanted, dtype=y.dtype) + shift)


def test_gradcheck() -> None:
    layer = drawn(ModalityLinear(2, 3, 2))
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def mapped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(mapped, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_contract(bias: bool) -> None:
    assert_block_contract(ModalityLinear(2, 4, 3, bias=bias), torch.randn(5, 2, 4))


def test_starts_in_the_bounds_of_xavier() -> None:
    layer = ModalityLinear(3, 64, 32)
    bound = math.sqrt(6 / 96)
    for weight in layer.weight:
        assert 0.95 * bound < weight.abs().max() <= bound
    assert (layer.bias == 0).all()


def test_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"Expected out_dim > 0, got 0\."):
        ModalityLinear(2, 4, 0)
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., 2, 4\), got \(2, 3\)\."):
        ModalityLinear(2, 4, 3)(torch.zeros(2, 3))


def test_repr() -> None:
    wanted = "ModalityLinear(num_modalities=2, in_dim=4, out_dim=3, bias=False)"
    assert repr(ModalityLinear(2, 4, 3, bias=False)) == wanted
