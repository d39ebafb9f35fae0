"""Tests for mmfuse.diagnostics.summary."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.diagnostics import contribution_shares, contributions_by_category
from tests.outcomes import assert_same, places
from tests.strategies import leads, seeds, sizes, streams, with_nan

few = settings(max_examples=25)


class Rows(NamedTuple):
    """Contributions of rows (...), of one, no or several categories."""

    contributions: Tensor  # (..., M)
    categories: Tensor  # (...) or (..., C)
    num_categories: int
    present: Tensor  # (..., M)


@st.composite
def many(draw: st.DrawFn, labels: bool | None = None) -> Rows:
    lead, kinds = draw(leads()), draw(sizes)
    shape = (*lead, draw(sizes))
    labels = draw(st.booleans()) if labels is None else labels
    torch.manual_seed(draw(seeds))
    contributions = torch.randn(shape, dtype=torch.float64)
    if labels:
        categories = torch.randint(kinds, lead).masked_fill(torch.rand(lead) < 0.2, -100)
    else:
        categories = torch.rand(*lead, kinds) < 0.4
    return Rows(contributions, categories, kinds, torch.rand(shape) < 0.7)


def multi_hot(case: Rows) -> Tensor:
    if case.categories.dtype == torch.bool:
        return case.categories
    return case.categories.unsqueeze(-1) == torch.arange(case.num_categories)


def cells(case: Rows) -> list[list[list[float]]]:
    """What counts in each cell (c, m)."""
    found: list[list[list[float]]] = [
        [[] for _ in range(case.contributions.shape[-1])] for _ in range(case.num_categories)
    ]
    member = multi_hot(case)
    for *place, m in places(case.present.shape):
        for c in range(case.num_categories):
            if case.present[(*place, m)] and member[(*place, c)]:
                found[c][m].append(float(case.contributions[(*place, m)]))
    return found


# -- reference: the formulas, read aloud -----------------------------------------------------------


@given(many())
@settings(max_examples=60)
def test_mean_deviation_and_counts_match_naive(case: Rows) -> None:
    rows = cells(case)
    mean = [[statistics.fmean(cell or [0.0]) for cell in row] for row in rows]
    std = [[statistics.stdev(cell) if len(cell) > 1 else 0.0 for cell in row] for row in rows]
    got = contributions_by_category(*case)
    torch.testing.assert_close(got.mean, torch.tensor(mean, dtype=torch.float64))
    torch.testing.assert_close(got.std, torch.tensor(std, dtype=torch.float64))
    assert got.counts.tolist() == [[len(cell) for cell in row] for row in rows]


@given(many())
@few
def test_shares_match_naive(case: Rows) -> None:
    got = contribution_shares(case.contributions, case.present)
    for place in places(case.present.shape[:-1]):
        pairs = zip(case.contributions[place].tolist(), case.present[place].tolist(), strict=True)
        size = [abs(value) if there else 0.0 for value, there in pairs]
        wanted = [value / (sum(size) or 1.0) for value in size]
        torch.testing.assert_close(got[place], torch.tensor(wanted, dtype=torch.float64))


# -- properties ------------------------------------------------------------------------------------


@given(streams())
@few
def test_shares_sum_to_one_where_something_contributes(case: Any) -> None:
    shares = contribution_shares(case.x[..., 0], case.present)
    torch.testing.assert_close(shares.sum(-1), case.present.any(-1).to(shares.dtype))
    assert (shares >= 0).all()
    assert_same(contribution_shares(-case.x[..., 0], case.present), shares)


def test_shares_know_no_scale() -> None:
    contributions = torch.tensor([3e-30, -1e-30])
    torch.testing.assert_close(contribution_shares(contributions), torch.tensor([0.75, 0.25]))


def test_a_contribution_that_is_no_number_is_not_hidden() -> None:
    contributions = torch.tensor([[math.nan, 1.0], [1.0, 1.0]])
    assert contribution_shares(contributions).isnan().tolist() == [[True, True], [False, False]]
    by_category = contributions_by_category(contributions, torch.tensor([0, 0]), 1)
    assert by_category.mean.isnan().tolist() == [[True, False]]


@given(many())
@few
def test_nan_of_an_absent_modality_changes_nothing(case: Rows) -> None:
    dirty = with_nan(case.contributions, case.present)
    wanted = contribution_shares(case.contributions, case.present)
    assert_same(contribution_shares(dirty, case.present), wanted)
    got = contributions_by_category(*case._replace(contributions=dirty))
    assert_same(got, contributions_by_category(*case))


@given(many())
@few
def test_no_mask_is_a_mask_of_ones(case: Rows) -> None:
    everywhere = torch.ones_like(case.present)
    got = contributions_by_category(*case[:3])
    assert_same(got, contributions_by_category(*case[:3], everywhere))
    shares = contribution_shares(case.contributions)
    assert_same(shares, contribution_shares(case.contributions, everywhere))


@given(many(), seeds)
@few
def test_padding_counts_for_nothing(case: Rows, seed: int) -> None:
    torch.manual_seed(seed)
    valid = torch.rand(case.present.shape[:-1]) < 0.6
    dirty = with_nan(case.contributions, valid)
    if case.categories.dtype == torch.bool:
        categories = case.categories | ~valid.unsqueeze(-1)
    else:
        categories = case.categories.masked_fill(~valid, case.num_categories)  # a number of its own
    changed = case._replace(contributions=dirty, categories=categories)
    wanted = case._replace(present=case.present & valid.unsqueeze(-1))
    assert_same(contributions_by_category(*changed, valid), contributions_by_category(*wanted))
    got = contributions_by_category(*changed[:3], valid=valid)
    everywhere = valid.unsqueeze(-1).expand(case.present.shape)
    assert_same(got, contributions_by_category(*case._replace(present=everywhere)))


@given(many(labels=True))
@few
def test_labels_and_the_same_as_multi_hot_agree(case: Rows) -> None:
    hot = multi_hot(case)
    for categories in (hot, hot.long(), hot.double()):
        got = contributions_by_category(*case._replace(categories=categories))
        torch.testing.assert_close(got, contributions_by_category(*case))


@given(many())
@few
def test_permuting_modalities_permutes_columns(case: Rows) -> None:
    order = torch.randperm(case.present.shape[-1])
    contributions, present = case.contributions[..., order], case.present[..., order]
    got = contributions_by_category(*case._replace(contributions=contributions, present=present))
    wanted = [part[:, order] for part in contributions_by_category(*case)]
    torch.testing.assert_close([*got], wanted)


def test_an_absent_modality_is_left_out_and_not_a_zero() -> None:
    contributions = torch.tensor([[1.0, 4.0], [3.0, 0.0]])
    categories, present = (
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([[True] * 2, [True, False]]),
    )
    left_out = contributions_by_category(contributions, categories, 1, present)
    assert left_out.mean.tolist() == [[2, 4]]
    assert left_out.counts.tolist() == [[2, 1]]
    zero = contributions_by_category(contributions, categories, 1)
    assert zero.mean.tolist() == [[2, 2]]
    assert zero.counts.tolist() == [[2, 2]]


def test_a_row_counts_for_each_of_its_categories_and_an_unknown_one_for_none() -> None:
    contributions = torch.tensor([[1.0], [2.0], [8.0]])
    hot = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    mean, _, counts = contributions_by_category(contributions, hot, 3)
    assert mean.tolist() == [[1.5], [1], [0]]
    assert counts.tolist() == [[2], [1], [0]]


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_without_rows_everything_is_zero(shape: tuple[int, ...]) -> None:
    categories = torch.zeros(shape, dtype=torch.int64)
    mean, std, counts = contributions_by_category(torch.ones(*shape, 2), categories, 3)
    assert_same(mean, torch.zeros(3, 2))
    assert_same(std, torch.zeros(3, 2))
    assert_same(counts, torch.zeros(3, 2, dtype=torch.int64))


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    contributions = torch.rand(5000, 3).to(dtype)
    categories = torch.zeros(5000, dtype=torch.int64)
    got = contributions_by_category(contributions, categories, 1)
    assert got.mean.dtype == got.std.dtype == torch.float32
    torch.testing.assert_close(got, contributions_by_category(contributions.float(), categories, 1))
    shares = contribution_shares(contributions)
    torch.testing.assert_close(shares, contribution_shares(contributions.float()))


def test_a_small_spread_around_a_large_mean_is_not_lost() -> None:
    contributions = torch.tensor([[10000.0], [10001.0], [10002.0]])
    got = contributions_by_category(contributions, torch.zeros(3, dtype=torch.int64), 1)
    torch.testing.assert_close(got.std, torch.tensor([[1.0]]))


# -- errors ----------------------------------------------------------------------------------------

VALUES, KINDS = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VALUES, KINDS, 0), r"Expected num_categories > 0, got 0\."),
        ((VALUES, KINDS + 2, 2), r"Expected categories < num_categories = 2, got 2\."),
        ((VALUES, KINDS > 0, 2), r"categories of an integer dtype, got torch\.bool\."),
        ((VALUES, KINDS[:2], 2), r"Expected categories of shape \(3,\), got \(2,\)\."),
        ((VALUES, VALUES, 4), r"Expected categories of shape \(3,\), got \(3, 2\)\."),
        ((VALUES[0, 0], KINDS, 2), r"contributions of shape \(\.\.\., M\), got \(\)\."),
        ((VALUES, KINDS, 2, VALUES), r"Expected present of dtype torch\.bool, got torch\.float32"),
        ((VALUES, KINDS, 2, None, KINDS), r"Expected valid of dtype torch\.bool, got torch\.int64"),
        ((VALUES, KINDS, 2, None, VALUES > 0), r"Expected valid of shape \(3,\), got \(3, 2\)\."),
        ((VALUES, VALUES, 2, None, KINDS[:2] == 0), r"Expected valid of shape \(3,\), got \(2,\)"),
    ],
)
def test_by_category_rejects_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contributions_by_category(*arguments)


def test_category_that_is_not_there_is_no_unknown_category() -> None:
    with pytest.raises(ValueError, match=r"Expected categories >= 0, got -1\."):
        contributions_by_category(VALUES, KINDS - 1, 2)


def test_shares_reject_bad_arguments() -> None:
    with pytest.raises(
        ValueError, match=r"Expected contributions of shape \(\.\.\., M\), got \(\)"
    ):
        contribution_shares(VALUES[0, 0])
    with pytest.raises(ValueError, match=r"Expected present of shape \(3, 2\), got \(2,\)\."):
        contribution_shares(VALUES, VALUES[0] > 0)
