"""Tests for mmfuse._routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse._routing import choose, count_choices, linear_scores, log_sum, spread
from tests.outcomes import assert_same, places
from tests.strategies import leads, seeds, sizes

many = settings(max_examples=50)


@many
@given(leads(), sizes, sizes, st.booleans(), seeds)
def test_scores_match_naive_products(
    lead: tuple[int, ...], dim: int, experts: int, masked: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(*lead, dim).double(), torch.randn(experts, dim).double()
    valid = torch.rand(lead) < 0.5 if masked else torch.ones(lead) > 0
    spoilt = x.masked_fill(~valid.unsqueeze(-1), torch.nan)
    scores = linear_scores(spoilt, weight, valid if masked else None)
    for row in places(lead):
        for e in range(experts):
            wanted = sum(float(x[row][d] * weight[e, d]) for d in range(dim))
            wanted = wanted if valid[row] else 0.0
            assert float(scores[row][e]) == pytest.approx(wanted, abs=1e-12)


@many
@given(leads(), sizes, st.data(), seeds)
def test_choice_matches_naive_sorting(
    lead: tuple[int, ...], experts: int, data: st.DataObject, seed: int
) -> None:
    torch.manual_seed(seed)
    top_k = data.draw(st.integers(1, experts))
    scores, valid = torch.randn(*lead, experts), torch.rand(lead) < 0.7
    index = choose(scores, top_k, valid)
    assert_same(choose(scores, top_k)[valid], index[valid])
    for row in places(lead):
        best = sorted(range(experts), key=lambda e: -float(scores[row][e]))[:top_k]
        assert index[row].tolist() == (best if valid[row] else [-1] * top_k)


@many
@given(leads(), sizes, st.data(), seeds)
def test_spreading_and_counting_match_naive_loops(
    lead: tuple[int, ...], experts: int, data: st.DataObject, seed: int
) -> None:
    torch.manual_seed(seed)
    top_k = data.draw(st.integers(1, experts))
    values, valid = torch.randn(*lead, top_k), torch.rand(lead) < 0.7
    index = choose(torch.randn(*lead, experts), top_k, valid)
    wide, counts = torch.zeros(*lead, experts), [0] * experts
    for place in places(index.shape):
        expert = int(index[place])
        if expert >= 0:
            wide[*place[:-1], expert] += values[place]
            counts[expert] += 1
    assert_same(spread(values, index, experts), wide)
    assert_same(count_choices(index, experts), torch.tensor(counts))


def test_nobody_spreads_nothing_and_gets_no_gradient() -> None:
    values = torch.ones(2, 2, requires_grad=True)
    index = torch.tensor([[1, -1], [-1, -1]])
    wide = spread(values, index, 3)
    assert_same(wide.detach(), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    wide.sum().backward()
    assert_same(values.grad, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_scores_of_bfloat16_are_those_of_float32_even_in_autocast() -> None:
    x, weight = torch.randn(5, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    wanted = linear_scores(x.float(), weight.float())
    assert_same(linear_scores(x, weight), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(linear_scores(x, weight), wanted)


def test_no_tokens_count_for_nobody() -> None:
    assert_same(count_choices(torch.zeros(0, 2, dtype=torch.int64), 3), torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("num_experts", [7, 8, 128, 129])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_best_are_those_of_a_full_sort(num_experts: int, top_k: int) -> None:
    scores = torch.randn(50, num_experts)
    index = choose(scores, top_k)
    assert torch.equal(index, scores.argsort(-1, descending=True)[:, :top_k])


@given(leads(), sizes, st.sampled_from([0.1, 3.0, 100.0, 1e5]), seeds)
def test_log_sum_of_the_best_is_the_log_sum_of_all(
    lead: tuple[int, ...], num_experts: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    logits = (scale * torch.randn(*lead, num_experts, dtype=torch.float64)).requires_grad_()
    given_sum = log_sum(logits, logits.softmax(-1), choose(logits, 1))
    wanted = logits.logsumexp(-1, keepdim=True)
    torch.testing.assert_close(given_sum, wanted)
    draw = torch.randn_like(wanted)
    got, want = (torch.autograd.grad((y * draw).sum(), logits)[0] for y in (given_sum, wanted))
    torch.testing.assert_close(got, want)
