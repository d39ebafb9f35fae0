"""Tests for mmfuse.experts.soft; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import SlotRouter, SoftRouter
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import sequences, sizes

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))

Case = tuple[Any, Tensor, Tensor]


@st.composite
def routers(draw: st.DrawFn, kind: type) -> Case:
    """A router, tokens, and which of them are real."""
    case = draw(histories)
    dim = case.x.shape[-1]
    if kind is SoftRouter:
        router = SoftRouter(dim, draw(sizes), temperature=draw(st.sampled_from([0.5, 1.0, 3.0])))
    else:
        router = SlotRouter(dim, draw(sizes), draw(sizes))
    return drawn(router), case.x.squeeze(-2), case.valid


# -- reference: the formula, read aloud ------------------------------------------------------------


def dot(a: Tensor, b: Tensor) -> float:
    return sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True))


@many
@given(routers(SoftRouter))
def test_matches_naive(case: Case) -> None:
    router, x, valid = case
    routed, experts, real = router(x, valid), router.num_experts, int(valid.sum())
    amounts, z = [0.0] * experts, 0.0
    for row in places(valid.shape):
        weight = routed.expert_weight[row].tolist()
        assert routed.router_probs[row].tolist() == weight
        if not valid[row]:
            assert weight == [0.0] * experts
            continue
        logits = [dot(w, x[row]) / router.temperature for w in router.weight]
        powers = [math.exp(logit) for logit in logits]
        g = [power / sum(powers) for power in powers]
        assert weight == pytest.approx(g)
        assert routed.router_logits[row].tolist() == pytest.approx(logits)
        amounts = [a + b for a, b in zip(amounts, g, strict=True)]
        z += math.log(sum(powers)) ** 2 / real
    mean = sum(amounts) / experts
    variance = sum((a - mean) ** 2 for a in amounts) / experts
    importance = variance / mean**2 if real else 0.0
    losses = {name: loss.item() for name, loss in routed.losses.items()}
    assert losses == pytest.approx({"importance": importance, "z": z}, abs=1e-12)


@many
@given(routers(SlotRouter))
def test_matches_naive_slots(case: Case) -> None:
    router, x, valid = case
    routed, (*lead, length) = router(x, valid), valid.shape
    experts, slots = router.num_experts, router.slots_per_expert
    phi = router.weight.reshape(experts, slots, -1)
    dispatch, combine = torch.zeros(2, *lead, length, experts, slots, dtype=x.dtype)
    for row in places(lead):
        seen = [i for i in range(length) if valid[row][i]]
        power = {}
        for i in seen:
            for e, s in places((experts, slots)):
                a, b = x[row][i], phi[e, s]
                cosine = dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
                power[i, e, s] = math.exp(router.scale.item() * cosine)
        for (i, e, s), own in power.items():
            over_tokens = sum(power[j, e, s] for j in seen)
            over_slots = sum(power[i, *slot] for slot in places((experts, slots)))
            dispatch[row][i, e, s] = own / over_tokens
            combine[row][i, e, s] = own / over_slots
    torch.testing.assert_close(routed.slots.dispatch, dispatch)
    torch.testing.assert_close(routed.slots.combine, combine)
    torch.testing.assert_close(routed.expert_weight, combine.sum(-1))
    assert (routed.losses, routed.expert_index) == ({}, None)


# -- properties ------------------------------------------------------------------------------------


@few
@given(routers(SlotRouter))
def test_a_slot_is_a_mean_of_valid_tokens_and_a_token_gets_a_mean_of_slots(case: Case) -> None:
    router, x, valid = case
    dispatch, combine = router(x, valid).slots
    some = valid.any(-1)[..., None, None].expand(dispatch.sum(-3).shape)
    torch.testing.assert_close(dispatch.sum(-3), some.double())
    torch.testing.assert_close(combine.sum((-2, -1)), valid.double())
    assert (dispatch[~valid] == 0).all()
    assert (combine[~valid] == 0).all()


@few
@given(routers(SlotRouter), st.sampled_from([1e-3, 0.5, 1e3]))
def test_slots_see_directions_and_not_lengths(case: Case, factor: float) -> None:
    router, x, valid = case
    wanted = router(x, valid)
    torch.testing.assert_close(router(factor * x, valid), wanted)
    with torch.no_grad():
        router.weight.mul_(factor)
    torch.testing.assert_close(router(x, valid), wanted)


def test_a_high_temperature_makes_experts_alike_and_a_low_one_chooses() -> None:
    x, weight = torch.randn(5, 3), torch.randn(4, 3)
    hot, cold = SoftRouter(3, 4, temperature=1e6), SoftRouter(3, 4, temperature=1e-6)
    for router in (hot, cold):
        router.load_state_dict({"weight": weight})
    torch.testing.assert_close(hot(x).expert_weight, torch.full((5, 4), 0.25))
    assert_same(cold(x).expert_weight.argmax(-1), (x @ weight.T).argmax(-1))
    torch.testing.assert_close(cold(x).expert_weight.amax(-1), torch.ones(5))


def test_a_zero_token_prefers_no_slot_and_has_a_finite_gradient() -> None:
    router, x = SlotRouter(3, 2, 2), torch.randn(2, 3)
    x[1] = 0
    assert_same(router(x).slots.combine[1].detach(), torch.full((2, 2), 0.25))
    outputs, gradients = outcome(router, x)
    assert all(part.isfinite().all() for part in (*outputs, *gradients))
