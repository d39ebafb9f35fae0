"""Tests for mmfuse.experts.dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.experts import combine_rows, gather_rows, limit_capacity, plan_dispatch
from tests.outcomes import assert_same
from tests.strategies import leads, seeds

many = settings(max_examples=60)
numbers = st.integers(1, 5)
some = st.integers(1, 7)
any_number = st.integers(0, 7)


@st.composite
def choices(draw: st.DrawFn, tokens: st.SearchStrategy[int] = any_number) -> tuple[Tensor, int]:
    """Choices (T, K) of any experts, some nobody's, some of one expert twice; and E."""
    torch.manual_seed(draw(seeds))
    num_experts, shape = draw(numbers), (draw(tokens), draw(st.integers(1, 4)))
    lowest = draw(st.sampled_from([-1, 0]))
    return torch.randint(lowest, num_experts, shape), num_experts


# -- reference: loops ------------------------------------------------------------------------------


def naive_order(index: Tensor, num_experts: int) -> list[int]:
    """Choices by expert, nobody's last, each expert's in the order of the tokens."""
    flat = index.flatten().tolist()
    return [
        place
        for expert in (*range(num_experts), -1)
        for place, chosen in enumerate(flat)
        if chosen == expert
    ]


def naive_combination(rows: Tensor, weight: Tensor, order: list[int]) -> Tensor:
    tokens, top_k = weight.shape
    y = rows.new_zeros(tokens, rows.shape[-1])
    for row, choice in enumerate(order):
        y[choice // top_k] += weight[choice // top_k, choice % top_k] * rows[row]
    return y


def naive_limit(index: Tensor, num_experts: int, capacity: int) -> Tensor:
    """First choices of all tokens, then second ones: an expert takes them until it is full."""
    flat, room = index.flatten(0, -2).tolist(), [capacity] * num_experts
    for k in range(index.shape[-1]):
        for token in flat:
            if token[k] < 0:
                continue
            room[token[k]] -= 1
            if room[token[k]] < 0:
                token[k] = -1
    return torch.tensor(flat, dtype=torch.int64).reshape(index.shape)


@many
@given(choices())
def test_the_plan_sorts_by_expert_and_keeps_the_order_of_tokens(case: tuple[Tensor, int]) -> None:
    index, num_experts = case
    plan, wanted = plan_dispatch(index, num_experts), naive_order(index, num_experts)
    assert plan.order.tolist() == wanted
    assert [wanted[place] for place in plan.inverse.flatten().tolist()] == list(range(len(wanted)))
    ends = [sum(0 <= i <= e for i in index.flatten().tolist()) for e in range(num_experts)]
    assert plan.offsets.tolist() == ends
    assert (plan.order.dtype, plan.offsets.dtype) == (torch.int64, torch.int32)


@many
@given(choices(), numbers)
def test_gathering_repeats_each_token_for_each_choice(case: tuple[Tensor, int], dim: int) -> None:
    index, num_experts = case
    x = torch.randn(len(index), dim)
    rows = gather_rows(x, plan_dispatch(index, num_experts))
    order = naive_order(index, num_experts)
    wanted = [x[choice // index.shape[1]] for choice in order]
    assert_same(rows, torch.stack(wanted) if wanted else x.new_zeros(0, dim))


@many
@given(choices(some), numbers)
def test_combining_sums_the_weighted_rows_of_a_token(case: tuple[Tensor, int], dim: int) -> None:
    index, num_experts = case
    rows = torch.randn(index.numel(), dim, dtype=torch.float64)
    weight = torch.randn(index.shape, dtype=torch.float64)
    y = combine_rows(rows, weight, plan_dispatch(index, num_experts))
    wanted = naive_combination(rows, weight, naive_order(index, num_experts))
    torch.testing.assert_close(y, wanted)


@many
@given(choices(some))
def test_combining_what_was_gathered_scales_each_token(case: tuple[Tensor, int]) -> None:
    index, num_experts = case
    plan, x = plan_dispatch(index, num_experts), torch.randn(len(index), 3, dtype=torch.float64)
    weight = torch.randn(index.shape, dtype=torch.float64)
    y = combine_rows(gather_rows(x, plan), weight, plan)
    torch.testing.assert_close(y, x * weight.sum(-1, keepdim=True))


@pytest.mark.parametrize("top_k", [1, 2])
def test_no_tokens_give_no_rows_and_back(top_k: int) -> None:
    plan = plan_dispatch(torch.zeros(0, top_k, dtype=torch.int64), 3)
    assert plan.offsets.tolist() == [0, 0, 0]
    x = torch.zeros(0, 4, requires_grad=True)
    rows = gather_rows(x, plan)
    y = combine_rows(rows, torch.zeros(0, top_k), plan)
    assert_same((rows, y), (torch.zeros(0, 4), torch.zeros(0, 4)))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_same(gradient, torch.zeros(0, 4))


def test_where_nobody_is_chosen_no_expert_gets_a_row() -> None:
    index = torch.full((3, 2), -1)
    plan = plan_dispatch(index, 2)
    assert plan.offsets.tolist() == [0, 0]
    assert plan.order.tolist() == plan.inverse.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert_same(limit_capacity(index, 2, 1), index)


# -- capacity --------------------------------------------------------------------------------------


@many
@given(seeds, leads(), numbers, st.integers(1, 4), st.integers(0, 6), st.booleans())
def test_first_choices_come_before_second_ones_until_an_expert_is_full(
    seed: int, lead: tuple[int, ...], num_experts: int, top_k: int, capacity: int, wrapped: bool
) -> None:
    torch.manual_seed(seed)
    index = torch.randint(-1, num_experts, (*lead, top_k))
    kept = limit_capacity(index, num_experts, torch.tensor(capacity) if wrapped else capacity)
    assert_same(kept, naive_limit(index.reshape(-1, top_k), num_experts, capacity).view_as(index))


def test_no_tokens_have_room() -> None:
    index = torch.zeros(0, 2, dtype=torch.int64)
    assert_same(limit_capacity(index, 3, 1), index)


# -- gradients -------------------------------------------------------------------------------------

INDEX = torch.tensor([[1, 0], [-1, 1], [2, 2]])


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gathering_has_right_gradients(check: Any) -> None:
    plan = plan_dispatch(INDEX, 3)
    # a nonlinear function, so that the second derivative is not zero
    assert check(lambda x: gather_rows(x, plan).sin(), (double(3, 2),))
    single = plan_dispatch(INDEX[:, :1], 3)
    assert check(lambda x: gather_rows(x, single).sin(), (double(3, 2),))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_combining_has_right_gradients(check: Any) -> None:
    plan = plan_dispatch(INDEX, 3)
    assert check(lambda rows, g: combine_rows(rows, g, plan), (double(6, 2), double(3, 2)))


def test_gradients_of_rows_are_those_of_plain_indexing() -> None:
    plan, x = plan_dispatch(INDEX, 3), double(3, 4)
    rows = gather_rows(x, plan)
    draw = torch.randn_like(rows)
    (got,) = torch.autograd.grad((rows * draw).sum(), x)
    (wanted,) = torch.autograd.grad((x[plan.order // 2] * draw).sum(), x)
    torch.testing.assert_close(got, wanted)


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_what_does_not_fit() -> None:
    plan = plan_dispatch(INDEX, 3)
    with pytest.raises(ValueError, match=r"expert_index of shape \(T, K\), got \(3,\)\."):
        plan_dispatch(INDEX[:, 0], 3)
    with pytest.raises(ValueError, match=r"Expected x of shape \(3, D\), got \(3, 2, 1\)\."):
        gather_rows(torch.zeros(3, 2, 1), plan)
    with pytest.raises(ValueError, match=r"Expected x of shape \(3, D\), got \(4, 2\)\."):
        gather_rows(torch.zeros(4, 2), plan)
    with pytest.raises(ValueError, match=r"Expected x of shape \(3, D\), got \(0, 2\)\."):
        gather_rows(torch.zeros(0, 2), plan)
    with pytest.raises(ValueError, match=r"Expected rows of shape \(6, D\), got \(5, 2\)\."):
        combine_rows(torch.zeros(5, 2), torch.zeros(3, 2), plan)
    with pytest.raises(ValueError, match=r"expert_weight of shape \(3, 2\), got \(3, 3\)\."):
        combine_rows(torch.zeros(6, 2), torch.zeros(3, 3), plan)
    with pytest.raises(ValueError, match=r"Expected expert_index < num_experts = 2, got 2\."):
        plan_dispatch(torch.tensor([[2]]), 2)


def test_capacity_rejects_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expert_index of shape \(\.\.\., K\), got \(\)\."):
        limit_capacity(torch.tensor(0), 3, 1)
    with pytest.raises(ValueError, match=r"Expected num_experts > 0, got 0\."):
        limit_capacity(INDEX, 0, 1)


def test_the_operators_keep_the_rules_of_torch() -> None:
    plan = plan_dispatch(INDEX, 3)
    x = torch.randn(3, 2, requires_grad=True)
    select, combine = torch.ops.mmfuse.select_rows.default, torch.ops.mmfuse.combine_rows.default
    results = torch.library.opcheck(select, (x, plan.order, plan.inverse))
    assert set(results.values()) == {"SUCCESS"}
    rows, weight = torch.randn(6, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    for shares in (weight, None):
        results = torch.library.opcheck(combine, (rows, shares, plan.order, plan.inverse))
        assert set(results.values()) == {"SUCCESS"}
