"""Tests for mmfuse.fusion.concat."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from mmfuse import ConcatFusion
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, outcome, places
from tests.references import naive_linear
from tests.strategies import streams, with_nan

few = settings(max_examples=25)


def fusion_of(x: Tensor, *, bias: bool = True) -> ConcatFusion:
    return drawn(ConcatFusion(x.shape[-1], x.shape[-2], bias=bias))


# -- reference: the formula, read aloud -----------------------------------------------------------


@given(streams(), st.booleans())
@few
def test_matches_naive(case, bias):
    fusion = fusion_of(case.x, bias=bias)
    dim = case.x.shape[-1]
    fused, weights, losses = fusion(case.x, case.present)
    assert (weights, losses) == (None, {})
    for place in places(case.present.shape[:-1]):
        wanted = fusion.linear.bias.tolist() if bias else [0.0] * dim
        for m, vector in enumerate(case.x[place].tolist()):
            if case.present[place][m]:
                block = fusion.linear.weight[:, m * dim : (m + 1) * dim].tolist()
                wanted = [a + b for a, b in zip(wanted, naive_linear(block, vector), strict=True)]
        torch.testing.assert_close(fused[place], torch.tensor(wanted, dtype=fused.dtype))


# -- properties -----------------------------------------------------------------------------------


@given(streams())
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    fusion = fusion_of(case.x)
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@given(streams())
@few
def test_dropping_the_first_modality_equals_masking_it(case):
    dim, num_modalities = case.x.shape[-1], case.x.shape[-2] + 1
    more = drawn(ConcatFusion(dim, num_modalities))
    less = ConcatFusion(dim, num_modalities - 1).double()
    less.linear.weight.data = more.linear.weight[:, dim:].detach()
    less.linear.bias.data = more.linear.bias.detach()
    x = torch.cat([torch.randn_like(case.x[..., :1, :]), case.x], -2)
    present = torch.cat([torch.zeros_like(case.present[..., :1]), case.present], -1)
    torch.testing.assert_close(more(x, present).fused, less(case.x, case.present).fused)


def test_nothing_present_gives_the_bias():
    fusion = drawn(ConcatFusion(3, 2)).float()
    fused = fusion(torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)).fused
    assert_same(fused, fusion.linear.bias.expand(4, 3))


def test_block_of_an_absent_modality_learns_nothing():
    fusion = ConcatFusion(3, 2)
    fusion(torch.randn(4, 2, 3), torch.tensor([True, False]).expand(4, 2)).fused.sum().backward()
    seen, hidden = fusion.linear.weight.grad.split(3, dim=1)
    assert (seen != 0).any()
    assert (hidden == 0).all()


def test_context_is_ignored():
    fusion, x = ConcatFusion(3, 2), torch.randn(4, 2, 3)
    assert_same(fusion(x, None, torch.randn(4, 9)).fused, fusion(x).fused)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_vector(copied):
    fusion, x = ConcatFusion(3, 2), torch.randn(4, 2, 3)
    assert_same(copied(fusion)(x).fused, fusion(x).fused)


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    fusion = drawn(ConcatFusion(2, 3))
    present = torch.tensor([[True, False, True], [False, False, False]])
    weights = dict(fusion.named_parameters())

    def fused(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(weights, parameters, strict=True))
        return functional_call(fusion, state, (x, present)).fused

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused, (x, *weights.values()))


@pytest.mark.parametrize("bias", [True, False])
def test_contract(bias):
    present = torch.tensor([[True, False], [False, True], [False, False]])
    assert_block_contract(ConcatFusion(4, 2, bias=bias), torch.randn(3, 2, 4), present)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2), r"Expected dim > 0, got 0\."),
        ((4, 0), r"Expected num_modalities > 0, got 0\."),
    ],
)
def test_rejects_bad_hyperparameters(sizes, message):
    with pytest.raises(ValueError, match=message):
        ConcatFusion(*sizes)


X = torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("x", "present", "message"),
    [
        (X.transpose(1, 2), None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 4, 2\)\."),
        (X.flatten(1), None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 8\)\."),
        (X, X[..., 0], r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, X > 0, r"Expected present of shape \(3, 2\), got \(3, 2, 4\)\."),
    ],
)
def test_rejects_bad_inputs(x, present, message):
    with pytest.raises(ValueError, match=message):
        ConcatFusion(4, 2)(x, present)


def test_repr():
    assert "ConcatFusion(\n  dim=4, num_modalities=2\n" in repr(ConcatFusion(4, 2))
