"""Tests for mmfuse.diagnostics.routing."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.diagnostics import (
    category_expert_overlap,
    category_expert_use,
    dead_experts,
    dropped_share,
    load_cv,
    routing_entropy,
    tokens_per_expert,
)
from mmfuse.experts import ExpertChoiceRouter, SoftRouter, TopKRouter
from mmfuse.types import RouterOutput
from tests.outcomes import assert_same, places
from tests.references import cosine
from tests.strategies import leads, seeds, sizes, with_nan

few = settings(max_examples=25)


class Batch(NamedTuple):
    """What a router made of tokens (...), some padding, some of unknown category."""

    routed: RouterOutput
    num_experts: int
    categories: Tensor  # (...)
    num_categories: int
    valid: Tensor  # (...)


@st.composite
def batches(draw: st.DrawFn, sparse: bool | None = None) -> Batch:
    """Chosen experts (..., K), some dropped, or weights (..., E), some zero."""
    lead, experts, kinds = draw(leads()), draw(sizes), draw(sizes)
    sparse = draw(st.booleans()) if sparse is None else sparse
    top_k = draw(st.integers(1, experts)) if sparse else experts
    torch.manual_seed(draw(seeds))
    weight = torch.randn(*lead, top_k, dtype=torch.float64)
    probs = torch.randn(*lead, experts, dtype=torch.float64).softmax(-1)
    index = None
    if sparse:
        index = torch.rand(*lead, experts).topk(top_k, dim=-1).indices
        index = index.masked_fill(torch.rand(index.shape) < 0.3, -1)
    else:
        weight = weight.masked_fill(torch.rand(weight.shape) < 0.3, 0)
    categories = torch.randint(kinds, lead).masked_fill(torch.rand(lead) < 0.2, -100)
    valid = torch.rand(lead) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    routed = RouterOutput(weight, {}, index, None, probs)
    return Batch(routed, experts, categories, kinds, valid)


def with_noise(case: Batch) -> RouterOutput:
    """The same, with NaN and choices at padding."""
    routed, other = case.routed, case.valid.unsqueeze(-1)
    index = routed.expert_index
    return routed._replace(
        expert_weight=with_nan(routed.expert_weight, case.valid),
        expert_index=None if index is None else torch.where(other, index, case.num_experts - 1),
        router_probs=with_nan(routed.router_probs, case.valid),
    )


def use_of(case: Batch) -> Tensor:
    return category_expert_use(*case)


def choosing(*index: list[int]) -> RouterOutput:
    """A router that gave these experts half a token each."""
    chosen = torch.tensor(index)
    return RouterOutput(torch.full(chosen.shape, 0.5), {}, chosen)


# -- reference: the formulas, read aloud ----------------------------------------------------------


def tokens(valid: Tensor) -> list[tuple[int, ...]]:
    return [place for place in places(valid.shape) if valid[place]]


def naive_weights(case: Batch, place: tuple[int, ...]) -> list[float]:
    """How much each expert counts for one token."""
    weight, index = case.routed.expert_weight[place], case.routed.expert_index
    if index is None:
        return weight.tolist()
    wide = [0.0] * case.num_experts
    for expert, amount in zip(index[place].tolist(), weight.tolist(), strict=True):
        if expert >= 0:
            wide[expert] += amount
    return wide


def naive_use(case: Batch) -> list[list[float]]:
    use = [[0.0] * case.num_experts for _ in range(case.num_categories)]
    for place in tokens(case.valid):
        category = int(case.categories[place])
        if category != -100:
            for expert, amount in enumerate(naive_weights(case, place)):
                use[category][expert] += abs(amount)
    return [[amount / (sum(row) or 1.0) for amount in row] for row in use]


def entropy(probs: list[float]) -> float:
    return -sum(p * math.log(p) for p in probs if p > 0)


@given(batches())
@settings(max_examples=60)
def test_tokens_per_expert_match_naive(case):
    rows = [naive_weights(case, place) for place in tokens(case.valid)]
    wanted = [sum(row[e] != 0 for row in rows) for e in range(case.num_experts)]
    counts = tokens_per_expert(case.routed, case.num_experts, case.valid)
    assert counts.dtype == torch.int64
    assert counts.tolist() == wanted


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
@few
def test_dead_experts_and_variation_match_naive(counts):
    assert dead_experts(torch.tensor(counts)).tolist() == [count == 0 for count in counts]
    wanted = statistics.pstdev(counts) / (statistics.fmean(counts) or 1)
    torch.testing.assert_close(load_cv(torch.tensor(counts)), torch.tensor(wanted))


@given(batches())
@settings(max_examples=60)
def test_routing_entropy_matches_naive(case):
    rows = [case.routed.router_probs[place].tolist() for place in tokens(case.valid)]
    count = max(len(rows), 1)
    mean = [sum(row[e] for row in rows) / count for e in range(case.num_experts)]
    wanted = (sum(map(entropy, rows)) / count, entropy(mean))
    got = routing_entropy(case.routed.router_probs, case.valid)
    torch.testing.assert_close(torch.stack(got), torch.tensor(wanted, dtype=torch.float64))


@given(batches(sparse=True))
@settings(max_examples=60)
def test_dropped_share_matches_naive(case):
    choices = [e for place in tokens(case.valid) for e in case.routed.expert_index[place].tolist()]
    wanted = choices.count(-1) / max(len(choices), 1)
    torch.testing.assert_close(dropped_share(case.routed, case.valid), torch.tensor(wanted))


@given(batches())
@few
def test_without_an_index_tokens_of_no_expert_are_dropped(case):
    routed = case.routed._replace(expert_index=None)
    weights = [routed.expert_weight[place].tolist() for place in tokens(case.valid)]
    wanted = sum(not any(row) for row in weights) / max(len(weights), 1)
    torch.testing.assert_close(dropped_share(routed, case.valid), torch.tensor(wanted))


def test_tokens_that_no_expert_picked_are_dropped():
    torch.manual_seed(0)
    routed = ExpertChoiceRouter(4, 3, capacity_factor=0.5)(torch.randn(2, 12, 4))
    unpicked = (routed.expert_weight == 0).all(-1).float().mean()
    assert 0 < unpicked < 1
    assert dropped_share(routed) == unpicked


@given(batches())
@settings(max_examples=60)
def test_category_expert_use_matches_naive(case):
    wanted = torch.tensor(naive_use(case), dtype=torch.float64)
    torch.testing.assert_close(use_of(case), wanted)


@given(batches())
@settings(max_examples=60)
def test_category_expert_overlap_matches_naive(case):
    use = naive_use(case)
    wanted = torch.tensor([[cosine(a, b) for b in use] for a in use], dtype=torch.float64)
    torch.testing.assert_close(category_expert_overlap(use_of(case)), wanted)


# -- properties: padding --------------------------------------------------------------------------


@given(batches())
@few
def test_noise_at_padding_changes_nothing(case):
    noisy = with_noise(case)
    mask = case.valid
    for function in (
        lambda routed: tokens_per_expert(routed, case.num_experts, mask),
        lambda routed: dropped_share(routed, mask),
        lambda routed: torch.stack(routing_entropy(routed.router_probs, mask)),
        lambda routed: category_expert_use(routed, *case[1:]),
    ):
        assert_same(function(noisy), function(case.routed))


@given(batches())
@few
def test_no_mask_is_a_mask_of_ones(case):
    routed, ones = case.routed, torch.ones_like(case.valid)
    for function in (
        lambda valid: tokens_per_expert(routed, case.num_experts, valid),
        lambda valid: dropped_share(routed, valid),
        lambda valid: torch.stack(routing_entropy(routed.router_probs, valid)),
        lambda valid: category_expert_use(*case[:4], valid),
    ):
        assert_same(function(None), function(ones))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(0,), (2, 0), (3,)])
def test_without_a_valid_token_everything_is_zero(sparse, shape):
    weight = torch.ones(*shape, 2)
    index = torch.zeros(*shape, 2, dtype=torch.int64) if sparse else None
    routed = RouterOutput(weight, {}, index)
    nobody = torch.zeros(shape, dtype=torch.bool)
    categories = torch.zeros(shape, dtype=torch.int64)
    counts = tokens_per_expert(routed, 2, nobody)
    use = category_expert_use(routed, 2, categories, 3, nobody)
    assert_same(counts, torch.tensor([0, 0]))
    assert dead_experts(counts).all()
    assert load_cv(counts) == 0
    assert dropped_share(routed, nobody) == 0
    assert routing_entropy(weight, nobody) == (0, 0)
    assert_same(use, torch.zeros(3, 2))
    assert_same(category_expert_overlap(use), torch.zeros(3, 3))


# -- properties: loads ----------------------------------------------------------------------------


@given(batches(sparse=True))
@few
def test_choices_are_processed_or_dropped(case):
    counts = tokens_per_expert(case.routed, case.num_experts, case.valid)
    asked = int(case.valid.sum()) * case.routed.expert_index.shape[-1]
    dropped = dropped_share(case.routed, case.valid) * asked
    torch.testing.assert_close(counts.sum() + dropped, torch.tensor(float(asked)))


def test_dense_router_gives_every_expert_every_token():
    valid = torch.tensor([[True, True, False], [True, False, False]])
    routed = SoftRouter(4, num_experts=3)(torch.randn(2, 3, 4), valid)
    assert tokens_per_expert(routed, 3, valid).tolist() == [3, 3, 3]
    assert dropped_share(routed, valid) == 0


def test_top_k_router_gives_every_token_its_experts():
    valid = torch.tensor([[True, True, False], [True, False, False]])
    routed = TopKRouter(4, num_experts=3, top_k=2)(torch.randn(2, 3, 4), valid)
    assert tokens_per_expert(routed, 3, valid).sum() == 6
    assert_same(tokens_per_expert(routed, 3), tokens_per_expert(routed, 3, valid))
    assert dropped_share(routed, valid) == 0
    assert dropped_share(routed) == 0.5


def test_expert_choice_counts_picked_tokens_only():
    router = ExpertChoiceRouter(4, num_experts=2, capacity_factor=1.0)
    routed = router(torch.randn(3, 6, 4))
    assert tokens_per_expert(routed, 2).tolist() == [9, 9]


def test_negative_weight_is_work_too():
    assert tokens_per_expert(RouterOutput(torch.tensor([[-1.0, 0.0]]), {}), 2).tolist() == [1, 0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 9), st.randoms())
@few
def test_variation_does_not_depend_on_scale_or_order(counts, scale, random):
    mixed = random.sample(counts, len(counts))
    torch.testing.assert_close(
        load_cv(scale * torch.tensor(mixed)), load_cv(torch.tensor(counts)), atol=1e-6, rtol=1e-5
    )


@given(sizes, st.integers(1, 100))
@few
def test_variation_goes_from_even_to_one_busy_expert(experts, count):
    assert load_cv(torch.full((experts,), count)) == 0
    busy = torch.zeros(experts, dtype=torch.int64)
    busy[-1] = count
    torch.testing.assert_close(load_cv(busy), torch.tensor(math.sqrt(experts - 1)))


# -- properties: entropy --------------------------------------------------------------------------


@given(batches())
@few
def test_entropies_lie_in_order_between_zero_and_log_of_experts(case):
    token, marginal = routing_entropy(case.routed.router_probs, case.valid)
    assert 0 <= token <= marginal + 1e-9
    assert marginal <= math.log(case.num_experts) + 1e-9


@given(batches(), st.integers(1, 4))
@few
def test_alike_tokens_have_no_information_about_experts(case, rows):
    same = case.routed.router_probs.reshape(-1, case.num_experts)[:1].expand(rows, -1)
    token, marginal = routing_entropy(same)
    torch.testing.assert_close(token, marginal)


def test_sure_router_that_uses_all_experts():
    token, marginal = routing_entropy(torch.eye(4))
    assert token == 0
    torch.testing.assert_close(marginal, torch.tensor(math.log(4)))


# -- properties: categories -----------------------------------------------------------------------


@given(batches())
@few
def test_use_of_a_category_sums_to_one_or_zero(case):
    total = use_of(case).sum(-1)
    used = total > 0
    torch.testing.assert_close(total[used], torch.ones_like(total[used]))
    assert (use_of(case) >= 0).all()


@given(batches())
@few
def test_overlap_is_symmetric_and_one_with_itself(case):
    use = use_of(case)
    overlap = category_expert_overlap(use)
    torch.testing.assert_close(overlap, overlap.mT)
    torch.testing.assert_close(overlap.diagonal(), (use.sum(-1) > 0).to(use.dtype))
    assert (overlap >= 0).all()
    assert (overlap <= 1 + 1e-9).all()


@given(batches(sparse=True))
@few
def test_choices_and_the_same_weights_spread_out_agree(case):
    rows = [naive_weights(case, place) for place in places(case.valid.shape)]
    wide = torch.tensor(rows, dtype=torch.float64).view(*case.valid.shape, case.num_experts)
    spread_out = category_expert_use(RouterOutput(wide, {}), *case[1:])
    torch.testing.assert_close(spread_out, use_of(case))


@given(batches())
@few
def test_permuting_categories_permutes_use(case):
    order = torch.randperm(case.num_categories)
    known = case.categories >= 0
    renamed = torch.where(known, order[case.categories.clamp_min(0)], -100)
    permuted = use_of(case._replace(categories=renamed))
    torch.testing.assert_close(permuted[order], use_of(case))


def test_categories_with_experts_of_their_own_do_not_overlap():
    use = category_expert_use(choosing([0, 1], [2, 3], [1, 2]), 4, torch.tensor([0, 1, -100]), 3)
    assert_same(use, torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]]))
    wanted = torch.diag(torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(category_expert_overlap(use), wanted)


@pytest.mark.parametrize("category", [2, -1])
def test_category_that_is_not_there_is_no_unknown_category(category):
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|out of bounds"):
        category_expert_use(choosing([0]), 1, torch.tensor([category]), 2)


# -- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", [None, torch.tensor([0, 1, 2]).expand(5000, 3)])
def test_half_precision_is_summed_in_float32(dtype, index):
    weight = torch.rand(5000, 3).softmax(-1).to(dtype)
    categories = torch.zeros(5000, dtype=torch.int64)
    use = category_expert_use(RouterOutput(weight, {}, index), 3, categories, 1)
    wide = category_expert_use(RouterOutput(weight.float(), {}, index), 3, categories, 1)
    assert use.dtype == torch.float32
    torch.testing.assert_close(use, wide)
    half = torch.stack(routing_entropy(weight))
    torch.testing.assert_close(half, torch.stack(routing_entropy(weight.float())))


def test_autocast_changes_nothing():
    use = torch.rand(4, 3)
    wanted = category_expert_overlap(use)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(category_expert_overlap(use), wanted)


# -- errors ---------------------------------------------------------------------------------------

DENSE = RouterOutput(torch.ones(3, 2), {})
SPARSE = RouterOutput(torch.ones(3, 2), {}, torch.zeros(3, 1, dtype=torch.int64))
KINDS = torch.zeros(3, dtype=torch.int64)
SHORT = torch.ones(2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (tokens_per_expert, (DENSE, 0), r"Expected num_experts > 0, got 0\."),
        (tokens_per_expert, (DENSE, 3), r"expert_weight of shape \(\.\.\., 3\), got \(3, 2\)\."),
        (tokens_per_expert, (SPARSE, 3), r"expert_index of shape \(3, 2\), got \(3, 1\)\."),
        (tokens_per_expert, (DENSE, 2, SHORT), r"Expected valid of shape \(3,\), got \(2,\)\."),
        (tokens_per_expert, (DENSE, 2, KINDS), r"Expected valid of dtype torch\.bool, got torch"),
        (dead_experts, (torch.ones(1, 2),), r"tokens_per_expert of shape \(E,\), got \(1, 2\)\."),
        (load_cv, (torch.ones(1, 2),), r"tokens_per_expert of shape \(E,\), got \(1, 2\)\."),
        (
            routing_entropy,
            (torch.ones(()),),
            r"Expected router_probs of shape \(\.\.\., E\), got \(\)\.",
        ),
        (routing_entropy, (torch.ones(3, 2), SHORT), r"valid of shape \(3,\), got \(2,\)\."),
        (dropped_share, (SPARSE,), r"expert_index of shape \(3, 2\), got \(3, 1\)\."),
        (dropped_share, (DENSE, SHORT), r"Expected valid of shape \(3,\), got \(2,\)\."),
        (category_expert_use, (DENSE, 2, KINDS, 0), r"Expected num_categories > 0, got 0\."),
        (category_expert_use, (DENSE, 0, KINDS, 1), r"Expected num_experts > 0, got 0\."),
        (category_expert_use, (DENSE, 3, KINDS, 1), r"expert_weight of shape \(\.\.\., 3\), got"),
        (category_expert_use, (DENSE, 2, KINDS[:1], 1), r"categories of shape \(3,\), got \(1,\)"),
        (category_expert_use, (DENSE, 2, KINDS, 1, SHORT), r"valid of shape \(3,\), got \(2,\)\."),
        (category_expert_overlap, (torch.ones(2),), r"category_expert_use of shape \(C, E\), got"),
    ],
)
def test_rejects_bad_inputs(function, inputs, message):
    with pytest.raises(ValueError, match=message):
        function(*inputs)
