"""Tests for mmfuse.layers.masking."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfuse.layers import apply_where, mask_absent, masked_product, masked_softmax, observed
from mmfuse.types import Streams
from tests.outcomes import assert_same, outcome, places, static_shapes
from tests.strategies import Sequences, sequences, streams, with_nan

few = settings(max_examples=40)
temperatures = st.sampled_from([0.1, 1.0, 7.0])


class Rowwise(nn.Module):
    """A row-wise function with parameters, applied where valid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2, dtype=torch.float64)

    def bend(self, row: Tensor, other: Tensor) -> Tensor:
        return torch.tanh(self.linear(row)) * other.exp().sum(-1, keepdim=True)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        return apply_where(self.bend, valid, x, x - 1)


# -- reference: the formulas, read aloud -----------------------------------------------------------


def naive_softmax(scores: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Loop over rows; the absent count neither above nor below the line."""
    weights = torch.zeros_like(scores)
    for row in places(scores.shape[:-1]):
        there = [m for m in range(scores.shape[-1]) if present[row][m]]
        power = {m: math.exp(scores[row][m].item() / temperature) for m in there}
        for m in there:
            weights[row][m] = power[m] / sum(power.values())
    return weights


@few
@given(streams(), temperatures)
def test_masked_softmax_matches_naive(case: Streams, temperature: float) -> None:
    scores = case.x[..., 0]
    weights = masked_softmax(scores, case.present, temperature=temperature)
    torch.testing.assert_close(weights, naive_softmax(scores, case.present, temperature))


@few
@given(streams())
def test_mask_absent_matches_naive(case: Streams) -> None:
    wanted = case.x.clone()
    for place in places(case.present.shape):
        if not case.present[place]:
            wanted[place] = 0
    assert_same(mask_absent(case.x, case.present), wanted)


@few
@given(streams())
def test_masked_product_matches_naive(case: Streams) -> None:
    product = masked_product(with_nan(case.x, case.present), case.present)
    for place in places(case.x.shape[:-2]):
        rows = zip(case.x[place].tolist(), case.present[place].tolist(), strict=True)
        wanted = [1.0] * case.x.shape[-1]
        for row, there in rows:
            wanted = [a * b if there else a for a, b in zip(wanted, row, strict=True)]
        torch.testing.assert_close(product[place], torch.tensor(wanted, dtype=product.dtype))


@few
@given(streams())
def test_what_is_absent_may_become_any_number(case: Streams) -> None:
    filled = mask_absent(with_nan(case.x, case.present), case.present, fill=2.5)
    assert_same(filled, torch.where(case.present.unsqueeze(-1), case.x, 2.5))


@few
@given(sequences())
def test_observed_matches_naive(case: Sequences) -> None:
    seen = observed(case.x, case.present, case.valid)
    assert seen is not None
    for *position, m in places(case.present.shape):
        where = tuple(position)
        assert seen[where][m] == (case.present[where][m] and case.valid[where])


@few
@given(streams(), st.integers(0, 3))
def test_apply_where_matches_naive(case: Streams, ndim: int) -> None:
    """The mask has any number of dimensions, none at all too."""
    block = Rowwise(case.x.shape[-1])
    ndim = min(ndim, case.present.ndim)
    valid = case.present[(..., *(0,) * (case.present.ndim - ndim))]
    wanted = torch.zeros(*case.present.shape, 2, dtype=torch.float64)
    for place in places(valid.shape):
        if valid[place]:
            wanted[place] = block.bend(case.x[place], case.x[place] - 1)
    torch.testing.assert_close(block(case.x, valid), wanted)


# -- properties ------------------------------------------------------------------------------------


@few
@given(streams(scale=1e4))
def test_weights_are_a_distribution_over_what_is_present(case: Streams) -> None:
    weights = masked_softmax(case.x[..., 0], case.present)
    torch.testing.assert_close(weights.sum(-1), case.present.any(-1).double())
    assert (weights >= 0).all()
    assert (weights[~case.present] == 0).all()


@pytest.mark.parametrize("score", [torch.finfo(torch.float32).min, 0.0, 1e38])
def test_the_absent_take_no_share_however_low_the_scores_are(score: float) -> None:
    weights = masked_softmax(torch.full((3,), score), torch.tensor([True, True, False]))
    assert_same(weights, torch.tensor([0.5, 0.5, 0.0]))


@few
@given(streams())
def test_dropping_is_masking(case: Streams) -> None:
    scores = case.x[..., 0]
    weights = masked_softmax(scores, case.present)
    for row in places(scores.shape[:-1]):
        there = case.present[row]
        torch.testing.assert_close(weights[row][there], masked_softmax(scores[row][there]))


@few
@given(streams())
def test_none_means_all_present(case: Streams) -> None:
    every, block = torch.ones_like(case.present), Rowwise(case.x.shape[-1])
    assert mask_absent(case.x) is case.x
    assert_same(mask_absent(case.x, every), case.x)
    assert_same(masked_softmax(case.x[..., 0]), masked_softmax(case.x[..., 0], every))
    torch.testing.assert_close(block(case.x, None), block(case.x, every))


def test_observed_needs_no_mask_and_keeps_a_single_one() -> None:
    x, present = torch.zeros(2, 3, 4), torch.tensor([[True, False, True], [True, True, True]])
    assert observed(x) is None
    assert observed(x, present) is present


@few
@given(streams())
def test_nan_where_absent_changes_nothing(case: Streams) -> None:
    x, present = case
    scores, spoilt = x[..., 0], with_nan(x, present)
    assert_same(outcome(mask_absent, spoilt, present), outcome(mask_absent, x, present))
    assert_same(
        outcome(masked_softmax, spoilt[..., 0], present), outcome(masked_softmax, scores, present)
    )


@pytest.mark.parametrize("shapes", [contextlib.nullcontext, static_shapes])
@few
@given(case=streams())
def test_nan_where_not_valid_changes_nothing(case: Streams, shapes) -> None:
    block = Rowwise(case.x.shape[-1])
    with shapes():
        spoilt = outcome(block, with_nan(case.x, case.present), case.present)
        assert_same(spoilt, outcome(block, case.x, case.present))


@few
@given(streams())
def test_packed_rows_give_the_numbers_of_static_shapes(case: Streams) -> None:
    block = Rowwise(case.x.shape[-1])
    packed = outcome(block, case.x, case.present)
    with static_shapes():
        torch.testing.assert_close(outcome(block, case.x, case.present), packed)


def test_only_valid_rows_are_computed() -> None:
    seen = []
    apply_where(lambda row: seen.append(row) or row, torch.tensor([False, True]), torch.eye(2))
    assert_same(seen, [torch.tensor([[0.0, 1.0]])])


def test_compiled_is_eager() -> None:
    block, x, valid = (
        Rowwise(3),
        torch.randn(4, 3).double(),
        torch.tensor([True, False, True, True]),
    )
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(outcome(compiled, x, valid), outcome(block, x, valid))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_batch_stays_empty(shape: tuple[int, ...]) -> None:
    x, mask = torch.zeros(*shape, 2), torch.ones(shape, dtype=torch.bool)
    assert_same(mask_absent(x, mask), x)
    assert_same(masked_softmax(x[..., 0], mask), x[..., 0])
    assert_same(apply_where(torch.sin, mask, x), x)


def test_bfloat16_stays_bfloat16_and_is_computed_in_float32() -> None:
    scores, present = torch.randn(5, 3).bfloat16(), torch.rand(5, 3) < 0.6
    weights = masked_softmax(scores, present, temperature=0.1)
    assert_same(weights, masked_softmax(scores.float(), present, temperature=0.1).bfloat16())
    assert mask_absent(scores, present[:, 0]).dtype == torch.bfloat16


# -- gradients -------------------------------------------------------------------------------------


@few
@given(streams())
def test_no_gradient_is_nan_on_its_way(case: Streams) -> None:
    """Anomaly detection, which looks at every step, has nothing to report."""
    spoilt = with_nan(case.x, case.present)[..., 0]
    with torch.autograd.set_detect_anomaly(True):
        _, (gradient,) = outcome(masked_softmax, spoilt, case.present)
    assert gradient.isfinite().all()


MIXED = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])


def test_a_product_can_be_differentiated_twice_where_a_factor_is_zero() -> None:
    x = torch.randn(3, 3, 2, dtype=torch.float64)
    x[0, 1] = 0
    x.requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: masked_product(x, MIXED), x)


def test_gradcheck() -> None:
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    block = Rowwise(2)
    assert torch.autograd.gradcheck(lambda x: mask_absent(x, MIXED), x)
    assert torch.autograd.gradcheck(lambda x: masked_softmax(x[..., 0], MIXED, temperature=0.5), x)
    assert torch.autograd.gradcheck(lambda x, *_: block(x, MIXED), (x, *block.parameters()))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mask_absent(x, MIXED[0]), r"present of shape \(3, 3\), got \(3,\)\."),
        (
            lambda x: mask_absent(x, MIXED.int()),
            r"present of dtype torch\.bool, got torch\.int32\.",
        ),
        (lambda x: observed(x, MIXED[0]), r"present of shape \(3, 3\), got \(3,\)\."),
        (lambda x: observed(x, None, MIXED), r"valid of shape \(3,\), got \(3, 3\)\."),
        (lambda x: masked_softmax(x, MIXED), r"present of shape \(3, 3, 2\), got \(3, 3\)\."),
        (lambda x: masked_softmax(x, temperature=0.0), r"Expected temperature > 0, got 0\.0\."),
        (
            lambda x: apply_where(torch.sin, MIXED[:2], x),
            r"valid of shape \(3, 3\), got \(2, 3\)\.",
        ),
        (lambda x: apply_where(torch.sin, MIXED.int(), x), r"valid of dtype torch\.bool"),
    ],
)
def test_rejects_what_does_not_fit(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 3, 2))
