"""Tests for mmfuse.fusion.sum."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mmfuse import SumFusion
from mmfuse.testing import assert_block_contract
from mmfuse.types import Streams
from tests.outcomes import assert_same, outcome, places
from tests.strategies import streams, with_nan

few = settings(max_examples=25)


def fusion_of(x: Tensor) -> SumFusion:
    return SumFusion(x.shape[-1], x.shape[-2])


def with_an_absent_one(case: Streams) -> Streams:
    noise, nowhere = torch.randn_like(case.x[..., :1, :]), torch.zeros_like(case.present[..., :1])
    return Streams(torch.cat([noise, case.x], -2), torch.cat([nowhere, case.present], -1))


# -- reference: the formula, read aloud -----------------------------------------------------------


@given(streams())
@few
def test_matches_naive(case):
    fused, weights, losses = fusion_of(case.x)(case.x, case.present)
    assert (weights, losses) == (None, {})
    for place in places(case.present.shape[:-1]):
        wanted = torch.zeros_like(case.x[place][0])
        for vector, there in zip(case.x[place], case.present[place], strict=True):
            wanted = wanted + vector if there else wanted
        torch.testing.assert_close(fused[place], wanted)


# -- properties -----------------------------------------------------------------------------------


@given(streams())
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    fusion = fusion_of(case.x)
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@given(streams())
@few
def test_dropping_an_absent_modality_equals_masking_it(case):
    more = with_an_absent_one(case)
    masked = fusion_of(more.x)(*more).fused
    torch.testing.assert_close(masked, fusion_of(case.x)(*case).fused)


@given(streams())
@few
def test_order_of_the_modalities_changes_nothing(case):
    order = torch.randperm(case.x.shape[-2])
    turned = fusion_of(case.x)(case.x[..., order, :], case.present[..., order]).fused
    torch.testing.assert_close(turned, fusion_of(case.x)(*case).fused)


@given(streams())
@few
def test_without_a_mask_everything_is_present(case):
    everywhere = torch.ones_like(case.present)
    fusion = fusion_of(case.x)
    assert_same(fusion(case.x).fused, fusion(case.x, everywhere).fused)


def test_nothing_present_gives_zero():
    fused = SumFusion(3, 2)(torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)).fused
    assert (fused == 0).all()


def test_context_is_ignored():
    x = torch.randn(4, 2, 3)
    assert_same(SumFusion(3, 2)(x, None, torch.randn(4, 9)).fused, SumFusion(3, 2)(x).fused)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_sum(copied):
    x = torch.randn(4, 2, 3)
    assert_same(copied(SumFusion(3, 2))(x).fused, SumFusion(3, 2)(x).fused)


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    present = torch.tensor([[True, False, True], [False, False, False]])
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SumFusion(2, 3)(x, present).fused, x)


def test_contract():
    assert_block_contract(SumFusion(4, 2), torch.randn(3, 2, 4), torch.rand(3, 2) < 0.5)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2), r"Expected dim > 0, got 0\."),
        ((4, -1), r"Expected num_modalities > 0, got -1\."),
    ],
)
def test_rejects_bad_hyperparameters(sizes, message):
    with pytest.raises(ValueError, match=message):
        SumFusion(*sizes)


X = torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("x", "present", "message"),
    [
        (X[:, :1], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 1, 4\)\."),
        (X[..., :3], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 2, 3\)\."),
        (X[0, 0], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(4,\)\."),
        (X, X[..., 0], r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, X[0, :, 0] > 0, r"Expected present of shape \(3, 2\), got \(2,\)\."),
    ],
)
def test_rejects_bad_inputs(x, present, message):
    with pytest.raises(ValueError, match=message):
        SumFusion(4, 2)(x, present)


def test_repr():
    assert repr(SumFusion(4, 2)) == "SumFusion(dim=4, num_modalities=2)"
