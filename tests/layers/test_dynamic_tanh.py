"""Tests for mmfuse.layers.dynamic_tanh."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import DynamicTanh
from mmfuse.testing import assert_block_contract
from mmfuse.types import Streams
from tests.outcomes import assert_same, drawn, places
from tests.strategies import streams

few = settings(max_examples=25)


# -- reference: the formula, read aloud ------------------------------------------------------------


def naive(layer: DynamicTanh, x: Tensor) -> Tensor:
    """Loop over every number."""
    y = torch.empty_like(x)
    for place in places(x.shape):
        y[place] = math.tanh(layer.alpha.item() * x[place].item())
        if layer.weight is not None and layer.bias is not None:
            y[place] = layer.weight[place[-1]] * y[place] + layer.bias[place[-1]]
    return y


@few
@given(streams(scale=3.0), st.booleans())
def test_matches_naive(case: Streams, affine: bool) -> None:
    layer = drawn(DynamicTanh(case.x.shape[-1], affine=affine))
    torch.testing.assert_close(layer(case.x), naive(layer, case.x))


# -- properties ------------------------------------------------------------------------------------


@few
@given(streams(), st.booleans())
def test_no_number_looks_at_another(case: Streams, affine: bool) -> None:
    layer = drawn(DynamicTanh(case.x.shape[-1], affine=affine))
    changed = case.x.clone()
    changed[..., 0] += 1
    assert_same(layer(changed)[..., 1:], layer(case.x)[..., 1:])


@few
@given(streams())
def test_fresh_affine_changes_nothing(case: Streams) -> None:
    dim = case.x.shape[-1]
    plain = DynamicTanh(dim, dtype=torch.float64)
    assert_same(DynamicTanh(dim, affine=True, dtype=torch.float64)(case.x), plain(case.x))


def test_is_linear_near_zero_and_bounded_far_away() -> None:
    layer = DynamicTanh(2, alpha=0.25)
    torch.testing.assert_close(layer(torch.tensor([4e-4, -4e-4])), torch.tensor([1e-4, -1e-4]))
    torch.testing.assert_close(layer(torch.tensor([1e9, -1e9])), torch.tensor([1.0, -1.0]))


def test_reset_brings_the_first_values_back() -> None:
    layer = drawn(DynamicTanh(3, alpha=0.75, affine=True))
    layer.reset_parameters()
    assert_same(dict(layer.named_parameters()), fresh_parameters(alpha=0.75))


def fresh_parameters(alpha: float) -> dict[str, Tensor]:
    return {
        "alpha": torch.tensor([alpha]).double(),
        "weight": torch.ones(3).double(),
        "bias": torch.zeros(3).double(),
    }


@pytest.mark.parametrize("affine", [False, True])
def test_bfloat16_stays_bfloat16(affine: bool) -> None:
    x = torch.randn(4, 3)
    layer = DynamicTanh(3, affine=affine)
    y = layer.bfloat16()(x.bfloat16())
    torch.testing.assert_close(y, layer.float()(x).bfloat16(), rtol=0.02, atol=0.02)


# -- gradients and contract ------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [False, True])
def test_gradcheck(affine: bool) -> None:
    layer = drawn(DynamicTanh(2, affine=affine))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


@pytest.mark.parametrize("affine", [False, True])
def test_contract(affine: bool) -> None:
    assert_block_contract(DynamicTanh(4, affine=affine), torch.randn(2, 3, 4))


def test_parameters_have_the_wanted_dtype_and_device() -> None:
    block = DynamicTanh(2, affine=True, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"dim": 2, "alpha": 0.0}, r"Expected alpha > 0, got 0\.0\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicTanh(**arguments)


def test_rejects_another_width() -> None:
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., 4\), got \(2, 3\)\."):
        DynamicTanh(4)(torch.zeros(2, 3))


def test_repr() -> None:
    assert str(DynamicTanh(4, alpha=0.25)) == "DynamicTanh(dim=4, alpha=0.25, affine=False)"
