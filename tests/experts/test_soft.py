"""Tests for mmfuse.experts.soft."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import SlotRouter, SoftRouter
from mmfuse.testing import assert_block_contract
from mmfuse.types import Router
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import sequences, sizes, with_nan

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))
kinds = pytest.mark.parametrize("kind", [SoftRouter, SlotRouter])

Case = tuple[Any, Tensor, Tensor]


@st.composite
def routers(draw: st.DrawFn, *kind: type) -> Case:
    """A router, tokens, and which of them are real."""
    case = draw(histories)
    dim, chosen = case.x.shape[-1], draw(st.sampled_from(kind or [SoftRouter, SlotRouter]))
    if chosen is SoftRouter:
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


@few
@given(routers(SoftRouter))
def test_weights_sum_to_one(case: Case) -> None:
    router, x, valid = case
    torch.testing.assert_close(router(x, valid).expert_weight.sum(-1), valid.double())


@few
@given(routers())
def test_nan_in_padding_changes_nothing(case: Case) -> None:
    router, x, valid = case
    assert_same(outcome(router, with_nan(x, valid), valid), outcome(router, x, valid))


@few
@given(routers(), sizes)
def test_padding_is_as_if_it_were_not_there(case: Case, padding: int) -> None:
    """To the losses too, on the left as on the right."""
    router, x, _ = case
    alone = router(x)
    zeros = torch.randn(*x.shape[:-2], padding, x.shape[-1], dtype=x.dtype)
    off, on = torch.zeros(zeros.shape[:-1]) > 0, torch.ones(x.shape[:-1]) > 0
    left = router(torch.cat([zeros, x], -2), torch.cat([off, on], -1))
    right = router(torch.cat([x, zeros], -2), torch.cat([on, off], -1))
    torch.testing.assert_close(left.expert_weight[..., padding:, :], alone.expert_weight)
    torch.testing.assert_close(right.expert_weight[..., :-padding, :], alone.expert_weight)
    torch.testing.assert_close(left.losses, alone.losses)
    torch.testing.assert_close(right.losses, alone.losses)
    for a, b, wanted in zip(left.slots or (), right.slots or (), alone.slots or (), strict=True):
        torch.testing.assert_close(a[..., padding:, :, :], wanted)
        torch.testing.assert_close(b[..., :-padding, :, :], wanted)


@few
@given(routers())
def test_none_means_all_valid(case: Case) -> None:
    router, x, valid = case
    torch.testing.assert_close(outcome(router, x, torch.ones_like(valid)), outcome(router, x))


@few
@given(routers())
def test_training_and_evaluation_are_the_same_and_deterministic(case: Case) -> None:
    router, x, valid = case
    wanted = router.eval()(x, valid)
    assert_same(router(x, valid), wanted)
    assert_same(router.train()(x, valid), wanted)


def test_a_high_temperature_makes_experts_alike_and_a_low_one_chooses() -> None:
    x, weight = torch.randn(5, 3), torch.randn(4, 3)
    hot, cold = SoftRouter(3, 4, temperature=1e6), SoftRouter(3, 4, temperature=1e-6)
    for router in (hot, cold):
        router.load_state_dict({"weight": weight})
    torch.testing.assert_close(hot(x).expert_weight, torch.full((5, 4), 0.25))
    assert_same(cold(x).expert_weight.argmax(-1), (x @ weight.T).argmax(-1))
    torch.testing.assert_close(cold(x).expert_weight.amax(-1), torch.ones(5))


@kinds
def test_a_single_expert_gets_everything(kind: type) -> None:
    routed = kind(3, 1)(torch.randn(5, 3))
    assert_same(routed.expert_weight.detach(), torch.ones(5, 1))


def test_a_single_token_needs_no_leading_dimension() -> None:
    router, x = SoftRouter(3, 4), torch.randn(3)
    single, batch = router(x), router(x.unsqueeze(0))
    torch.testing.assert_close(single.expert_weight, batch.expert_weight[0])
    torch.testing.assert_close(single.losses, batch.losses)


@kinds
def test_where_all_is_padding_nothing_happens(kind: type) -> None:
    router, x = kind(3, 4), torch.full((2, 5, 3), torch.nan)
    valid = torch.zeros(2, 5) > 0
    routed = router(x, valid)
    assert_same(routed.expert_weight.detach(), torch.zeros(2, 5, 4))
    for loss_or_slot in (*routed.losses.values(), *(routed.slots or ())):
        assert_same(loss_or_slot.detach(), torch.zeros_like(loss_or_slot))
    for gradient in outcome(router, x, valid)[1]:
        assert_same(gradient, torch.zeros_like(gradient))


@kinds
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_tokens_have_no_losses(kind: type, shape: tuple[int, int]) -> None:
    router, x = kind(3, 4), torch.zeros(*shape, 3)
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        routed = router(x, valid)
        assert_same(routed.expert_weight.detach(), torch.zeros(*shape, 4))
        assert all(loss.item() == 0 for loss in routed.losses.values())


def test_a_zero_token_prefers_no_slot_and_has_a_finite_gradient() -> None:
    router, x = SlotRouter(3, 2, 2), torch.randn(2, 3)
    x[1] = 0
    assert_same(router(x).slots.combine[1].detach(), torch.full((2, 2), 0.25))
    outputs, gradients = outcome(router, x)
    assert all(part.isfinite().all() for part in (*outputs, *gradients))


@kinds
def test_bfloat16_stays_bfloat16_and_scores_are_those_of_float32(kind: type) -> None:
    router, x = kind(8, 4).bfloat16(), torch.randn(2, 20, 8).bfloat16()
    routed, wide = router(x), kind(8, 4)
    wide.load_state_dict(router.state_dict())
    wanted = wide(x.float())
    torch.testing.assert_close(routed.expert_weight, wanted.expert_weight.bfloat16())
    assert_same(routed[1:5], wanted[1:5])
    for got, want in zip(routed.slots or (), wanted.slots or (), strict=True):
        assert_same(got, want.bfloat16())


@kinds
def test_autocast_does_not_touch_the_router(kind: type) -> None:
    router, x = kind(8, 4), torch.randn(2, 20, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = router(x)
    assert_same(rounded, router(x))


@kinds
def test_is_a_router(kind: type) -> None:
    assert isinstance(kind(3, 4), Router)


# -- gradients and contract ------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])


def test_gradcheck() -> None:
    router = drawn(SoftRouter(2, 3, temperature=0.5))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def route(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        routed = router(x, VALID)
        return routed.expert_weight, *routed.losses.values()

    assert torch.autograd.gradcheck(route, (x, router.weight))


def test_gradcheck_of_slots() -> None:
    router = drawn(SlotRouter(2, 2, 2))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def route(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        routed = router(x, VALID)
        return routed.expert_weight, *routed.slots

    assert torch.autograd.gradcheck(route, (x, router.weight, router.scale))


@pytest.mark.parametrize(
    "router",
    [SoftRouter(8, 4), SoftRouter(8, 4, temperature=0.5), SlotRouter(8, 4), SlotRouter(8, 2, 3)],
    ids=str,
)
@pytest.mark.parametrize("valid", [None, VALID], ids=["full", "padded"])
def test_contract(router: Any, valid: Tensor | None) -> None:
    x = torch.randn(3, 3, 8)
    x = x if valid is None else with_nan(x, valid)
    assert_block_contract(router, x, valid)


@kinds
def test_parameters_have_the_wanted_dtype_and_device(kind: type) -> None:
    block = kind(2, 3, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (SoftRouter, {"dim": 0}, r"Expected dim > 0, got 0\."),
        (SoftRouter, {"num_experts": -1}, r"Expected num_experts > 0, got -1\."),
        (SoftRouter, {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        (SlotRouter, {"dim": 0}, r"Expected dim > 0, got 0\."),
        (SlotRouter, {"num_experts": -1}, r"Expected num_experts > 0, got -1\."),
        (SlotRouter, {"slots_per_expert": 0}, r"Expected slots_per_expert > 0, got 0\."),
    ],
)
def test_rejects_bad_hyperparameters(kind: type, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{"dim": 2, "num_experts": 4, **arguments})


@pytest.mark.parametrize(
    ("kind", "x", "valid", "message"),
    [
        (SoftRouter, (3, 4), None, r"Expected x of shape \(\.\.\., 2\), got \(3, 4\)\."),
        (SlotRouter, (3, 4), None, r"Expected x of shape \(\.\.\., L, 2\), got \(3, 4\)\."),
        (SlotRouter, (2,), None, r"Expected x of shape \(\.\.\., L, 2\), got \(2,\)\."),
        *(
            case
            for kind in (SoftRouter, SlotRouter)
            for case in (
                (kind, (3, 3, 2), VALID[:2], r"Expected valid of shape \(3, 3\), got \(2, 3\)\."),
                (kind, (3, 3, 2), VALID.int(), r"Expected valid of dtype torch\.bool, got torch"),
            )
        ),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    kind: type, x: tuple[int, ...], valid: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(2, 3)(torch.zeros(x), valid)


def test_repr() -> None:
    wanted = "SoftRouter(dim=2, num_experts=3, temperature=0.5)"
    assert str(SoftRouter(2, 3, temperature=0.5)) == wanted
    assert str(SlotRouter(2, 3, 4)) == "SlotRouter(dim=2, num_experts=3, slots_per_expert=4)"
