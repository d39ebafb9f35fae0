"""Tests for mmfuse.experts.expert_choice; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import ExpertChoiceRouter
from tests.outcomes import assert_same, drawn, places
from tests.strategies import sequences, sizes

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1), length=st.integers(1, 7))
factors = st.sampled_from([0.25, 1.0, 1.3, 2.0, 9.0])

Case = tuple[ExpertChoiceRouter, Tensor, Tensor]


@st.composite
def routers(draw: st.DrawFn) -> Case:
    """A router, tokens, and which of them are real."""
    case = draw(histories)
    router = drawn(ExpertChoiceRouter(case.x.shape[-1], draw(sizes), draw(factors)))
    return router, case.x.squeeze(-2), case.valid


def taken(router: ExpertChoiceRouter, n: int) -> int:
    """How many of n tokens each expert takes, in exact arithmetic."""
    c = Fraction(str(router.capacity_factor))
    return min(math.ceil(c * n / router.num_experts), n)


# -- reference: the formula, read aloud ------------------------------------------------------------


@many
@given(routers())
def test_matches_naive(case: Case) -> None:
    router, x, valid = case
    routed, (*lead, length) = router(x, valid), valid.shape
    weights = torch.zeros(*lead, length, router.num_experts, dtype=x.dtype)
    probs, z, real = torch.zeros_like(weights), 0.0, int(valid.sum())
    for row in places(lead):
        p: dict[int, list[float]] = {}
        for i in range(length):
            if not valid[row][i]:
                continue
            token = x[row][i].tolist()
            logits = [
                sum(a * b for a, b in zip(w, token, strict=True)) for w in router.weight.tolist()
            ]
            powers = [math.exp(logit) for logit in logits]
            p[i] = [power / sum(powers) for power in powers]
            probs[row][i] = probs.new_tensor(p[i])
            z += math.log(sum(powers)) ** 2 / real
        for e in range(router.num_experts):
            best = sorted(p, key=lambda i, e=e: -p[i][e])[: taken(router, len(p))]
            for s, i in enumerate(best):
                weights[row][i, e] = p[i][e]
                if router.num_experts > 1:  # else all have probability one, in any order
                    assert int(routed.slots.token_index[row][e, s]) == i
                got = routed.slots.token_weight[row][e, s].item()
                assert got == pytest.approx(p[i][e])
            assert (routed.slots.token_weight[row][e, len(best) :] == 0).all()
    if router.num_experts > 1:
        torch.testing.assert_close(routed.expert_weight, weights)
    torch.testing.assert_close(routed.router_probs, probs)
    assert {k: v.item() for k, v in routed.losses.items()} == pytest.approx({"z": z})
    assert routed.expert_index is None


# -- properties ------------------------------------------------------------------------------------


@many
@given(routers())
def test_each_expert_takes_its_share_of_valid_tokens_and_no_other(case: Case) -> None:
    router, x, valid = case
    weight = router(x, valid).expert_weight
    for row in places(valid.shape[:-1]):
        share = taken(router, int(valid[row].sum()))
        assert (weight[row] > 0).sum(0).tolist() == [share] * router.num_experts
    assert (weight[~valid] == 0).all()


@few
@given(routers())
def test_no_token_left_out_is_more_probable_than_one_taken(case: Case) -> None:
    router, x, valid = case
    routed = router(x, valid)
    took = routed.expert_weight > 0
    left = ~took & valid.unsqueeze(-1)
    least = routed.router_probs.masked_fill(~took, torch.inf).amin(-2)
    most = routed.router_probs.masked_fill(~left, -torch.inf).amax(-2)
    assert (most <= least).all()
    assert_same(routed.expert_weight[took], routed.router_probs[took])


@few
@given(routers())
def test_slots_say_the_same_as_weights(case: Case) -> None:
    router, x, valid = case
    routed = router(x, valid)
    index, weight = routed.slots
    assert index.shape[-1] == taken(router, x.shape[-2])
    wide = torch.zeros_like(routed.expert_weight)
    for *row, e, s in places(index.shape):
        wide[*row, index[*row, e, s], e] += weight[*row, e, s]
    assert_same(wide, routed.expert_weight)
    ordered = index.sort(-1).values
    assert (ordered.diff(dim=-1) > 0).all()  # no expert takes a token twice


@pytest.mark.parametrize("real", [0, 1, 4, 7, 10])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_the_share_counts_valid_tokens_alone(real: int, factor: float) -> None:
    router, valid = ExpertChoiceRouter(3, 4, factor), torch.arange(10) < real
    routed = router(torch.randn(10, 3), valid)
    share = math.ceil(factor * real / 4)
    assert (routed.slots.token_weight > 0).sum(-1).tolist() == [share] * 4
    assert (routed.slots.token_weight[:, share:] == 0).all()


@pytest.mark.parametrize(
    ("factor", "length", "experts"), [(1.1, 30, 3), (1.1, 50, 11), (1.2, 5, 6), (2.2, 45, 9)]
)
def test_a_whole_share_is_not_rounded_up(factor: float, length: int, experts: int) -> None:
    router, x = ExpertChoiceRouter(3, experts, factor), torch.randn(length, 3)
    share = taken(router, length)
    for valid in (None, torch.ones(length) > 0):
        assert router(x, valid).slots.token_index.shape[-1] == share
        assert (router(x, valid).expert_weight > 0).sum(0).tolist() == [share] * experts


def test_equal_tokens_are_shared_out_all_the_same() -> None:
    weight = ExpertChoiceRouter(3, 2, 1.0)(torch.ones(6, 3)).expert_weight
    assert (weight > 0).sum(0).tolist() == [3, 3]


@pytest.mark.parametrize("real", [(0, 1), (1, 2), (2, 3)])
def test_padding_is_not_taken_where_probabilities_underflow(real: tuple[int, int]) -> None:
    """The second expert has probability zero at all tokens."""
    router, valid = ExpertChoiceRouter(1, 2, 1.0), torch.zeros(4) > 0
    valid[list(real)] = True
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[500.0], [-500.0]]))
    routed = router(torch.ones(4, 1), valid)
    assert int(routed.slots.token_index[1, 0]) in real
    assert_same(routed.expert_weight[:, 1].detach(), torch.zeros(4))


@few
@given(routers(), sizes)
def test_padding_leaves_slots_as_they_were(case: Case, padding: int) -> None:
    """And the loss, where a single expert finds all tokens alike."""
    router, x, _ = case
    alone = router(x)
    gap = torch.full((*x.shape[:-2], padding, x.shape[-1]), torch.nan, dtype=x.dtype)
    off, on = torch.zeros(gap.shape[:-1]) > 0, torch.ones(x.shape[:-1]) > 0
    left = router(torch.cat([gap, x], -2), torch.cat([off, on], -1))
    right = router(torch.cat([x, gap], -2), torch.cat([on, off], -1))
    slots = alone.slots.token_weight.shape[-1]
    for padded in (left, right):
        weight = padded.slots.token_weight
        torch.testing.assert_close(weight[..., :slots], alone.slots.token_weight)
        assert (weight[..., slots:] == 0).all()
        torch.testing.assert_close(padded.losses, alone.losses)


def test_a_factor_as_large_as_the_number_of_experts_is_a_softmax() -> None:
    router, x = drawn(ExpertChoiceRouter(3, 4, 4.0)), torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(router(x).expert_weight, torch.softmax(x @ router.weight.T, -1))


def test_a_single_expert_takes_its_share_with_weight_one() -> None:
    weight = ExpertChoiceRouter(3, 1, 0.5)(torch.randn(6, 3)).expert_weight
    assert_same(weight.detach().sort(0).values.flatten(), torch.tensor([0.0] * 3 + [1.0] * 3))
