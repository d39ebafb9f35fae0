"""Tests for mmfuse._contrast."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfuse._contrast import check_ids, check_reduction, masked_log_sum, masked_unit, reduce_rows
from tests.contrast import naive_reduction
from tests.strategies import seeds, sizes


@given(sizes, st.integers(0, 4), seeds)
def test_masked_log_sum_matches_naive(rows, width, seed):
    torch.manual_seed(seed)
    logits = 10 * torch.randn(rows, width, dtype=torch.float64)
    mask = torch.rand(rows, width) < 0.5
    for row, kept, got in zip(logits, mask, masked_log_sum(logits, mask), strict=True):
        wanted = row[kept].exp().sum().log() if kept.any() else torch.zeros_like(got)
        torch.testing.assert_close(got, wanted)


def test_masked_log_sum_gradient_is_finite_where_the_mask_is_never_true():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4) < 0.5
    mask[1] = False
    assert torch.autograd.gradcheck(lambda logits: masked_log_sum(logits, mask), logits)


def test_masked_unit_has_length_one_or_zero():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.nan, 1.0]])
    there = torch.tensor([True, True, False])
    wanted = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        masked_unit(vectors, there, torch.float64), wanted, atol=1e-7, rtol=0
    )


@given(st.integers(0, 4), seeds, st.sampled_from(["mean", "sum", "none"]), st.booleans())
def test_reduce_rows_matches_naive(rows, seed, reduction, masked):
    torch.manual_seed(seed)
    losses = torch.randn(rows, dtype=torch.float64)
    counts = torch.rand(rows) < 0.5 if masked else None
    listed = [None if masked and not counts[i] else loss for i, loss in enumerate(losses.tolist())]
    got = reduce_rows(losses, counts, reduction)
    torch.testing.assert_close(got, naive_reduction(listed, reduction))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_ids_are_whole_numbers(dtype):
    with pytest.raises(ValueError, match=rf"Expected ids of an integer dtype, got {dtype}\."):
        check_ids("ids", torch.ones(3, dtype=dtype), 3)


def test_ids_have_their_shape():
    with pytest.raises(ValueError, match=r"Expected key_ids of shape \(2, 3\), got \(3,\)\."):
        check_ids("key_ids", torch.ones(3, dtype=torch.int64), 2, 3)


def test_unknown_reduction():
    wanted = r"Expected reduction to be one of 'mean', 'sum', 'none', got 'max'\."
    with pytest.raises(ValueError, match=wanted):
        check_reduction("max")
