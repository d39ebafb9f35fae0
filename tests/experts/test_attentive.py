"""Tests for mmfuse.experts.attentive; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import AttentiveRouter
from mmfuse.experts import attentive_routing
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import Sequences, sequences, sizes, with_nan

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))
options = st.fixed_dictionaries({"causal": st.booleans(), "normalize": st.booleans()})


def tokens(case: Sequences) -> Tensor:  # (..., L, D)
    return case.x.squeeze(-2)


@st.composite
def routers(draw: st.DrawFn, **fixed: bool) -> tuple[AttentiveRouter, Tensor, Tensor]:
    """A router, tokens, and which of them are real."""
    case, arguments = draw(histories), draw(options) | fixed
    router = drawn(AttentiveRouter(case.x.shape[-1], draw(sizes), **arguments))
    return router, tokens(case), case.valid


# -- reference: the formula, read aloud ------------------------------------------------------------


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def naive_router(router: AttentiveRouter, x: Tensor, valid: Tensor) -> Tensor:
    """Eq. 6-7: loop over histories, asking positions, answering positions and experts."""
    experts, (*lead, length) = router.num_experts, valid.shape
    g = torch.zeros(*lead, length, experts, dtype=x.dtype)
    for row in places(lead):
        query, key, value = ((x[row] @ weight.T).tolist() for weight in router.weight)
        for i in range(length):
            if not valid[row][i]:
                continue
            last = i if router.causal else length - 1
            seen = [j for j in range(last + 1) if valid[row][j]]
            score = [
                sum(q * k for q, k in zip(query[i], key[j], strict=True)) / math.sqrt(experts)
                for j in seen
            ]
            attention = dict(zip(seen, softmax(score), strict=True))
            gate = [sum(a * value[j][e] for j, a in attention.items()) for e in range(experts)]
            g[row][i] = g.new_tensor(softmax(gate) if router.normalize else gate)
    return g


@many
@given(routers())
def test_matches_naive(case: tuple[AttentiveRouter, Tensor, Tensor]) -> None:
    router, x, valid = case
    routed = router(x, valid)
    torch.testing.assert_close(routed.expert_weight, naive_router(router, x, valid))
    assert routed.losses == {}
    assert routed.expert_index is None


# -- properties ------------------------------------------------------------------------------------


@few
@given(histories, st.booleans())
def test_nan_in_padding_changes_nothing_in_the_function_either(
    case: Sequences, causal: bool
) -> None:
    key, value = torch.randn(2, *tokens(case).shape, dtype=torch.float64)

    def route(x: Tensor, spoilt: bool) -> Tensor:
        parts = (x, key, value)
        if spoilt:
            parts = tuple(with_nan(part, case.valid) for part in parts)
        return attentive_routing(*parts, case.valid, causal=causal)

    assert_same(outcome(route, tokens(case), True), outcome(route, tokens(case), False))


@few
@given(routers(causal=True))
def test_no_position_sees_a_later_one(case: tuple[AttentiveRouter, Tensor, Tensor]) -> None:
    router, x, valid = case
    length = x.shape[-2]
    weight = router(x, valid).expert_weight
    for last in range(length):
        later = torch.arange(length) > last
        changed = torch.where(later.unsqueeze(-1), torch.randn_like(x), x)
        other = router(changed, torch.where(later, ~valid, valid)).expert_weight
        torch.testing.assert_close(other[..., : last + 1, :], weight[..., : last + 1, :])


def test_without_order_all_positions_are_alike() -> None:
    router, order = drawn(AttentiveRouter(3, 4, causal=False)), torch.tensor([2, 0, 1])
    x = torch.randn(3, 3, dtype=torch.float64)
    torch.testing.assert_close(router(x[order])[0], router(x)[0][order])


def test_a_first_position_votes_for_itself() -> None:
    value = torch.randn(1, 1, 4)
    assert_same(attentive_routing(torch.randn(1, 1, 4), torch.randn(1, 1, 4), value), value)


# -- a few experts for each token ------------------------------------------------------------------


def wide(weight: Tensor, index: Tensor, num_experts: int) -> Tensor:
    """Side by side, zero where not chosen."""
    y = weight.new_zeros(*weight.shape[:-1], num_experts)
    for place in places(weight.shape):
        if index[place] >= 0:
            y[place[:-1]][index[place]] += weight[place]
    return y


@few
@given(routers(normalize=False), st.data())
def test_top_k_keeps_the_weights_that_are_largest_in_magnitude(
    case: tuple[AttentiveRouter, Tensor, Tensor], data: st.DataObject
) -> None:
    router, x, valid = case
    dense = router(x, valid).expert_weight
    router.top_k = top_k = data.draw(st.integers(1, router.num_experts))
    weight, _, index, *_ = router(x, valid)
    kept = dense.abs().sort(-1, descending=True).values[..., top_k - 1 : top_k]
    wanted = torch.where(dense.abs() >= kept, dense, 0.0)
    torch.testing.assert_close(wide(weight, index, router.num_experts), wanted)
    assert_same(index < 0, ~valid.unsqueeze(-1).expand_as(index))


@few
@given(routers(), st.booleans())
def test_keeping_all_experts_is_keeping_the_weights(
    case: tuple[AttentiveRouter, Tensor, Tensor], normalize: bool
) -> None:
    router, x, valid = case
    router.normalize = normalize
    dense = router(x, valid).expert_weight
    router.top_k = router.num_experts
    weight, _, index, *_ = router(x, valid)
    torch.testing.assert_close(wide(weight, index, router.num_experts), dense)


@few
@given(routers(normalize=True))
def test_the_kept_weights_are_normalized_among_themselves(
    case: tuple[AttentiveRouter, Tensor, Tensor],
) -> None:
    router, x, valid = case
    router.normalize = False
    raw = router(x, valid).expert_weight
    router.normalize, router.top_k = True, min(2, router.num_experts)
    weight, _, index, *_ = router(x, valid)
    for place in places(valid.shape):
        got = weight[place].tolist()
        picked = raw[place][index[place]].tolist()
        assert got == pytest.approx(softmax(picked) if valid[place] else [0.0] * len(got))


# -- errors ----------------------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": torch.zeros(3)}, r"Expected query of shape \(\.\.\., L, E\), got \(3,\)\."),
        ({"key": torch.zeros(4, 2)}, r"Expected key of shape \(3, 2\), got \(4, 2\)\."),
        ({"value": torch.zeros(3, 3)}, r"Expected value of shape \(3, 2\), got \(3, 3\)\."),
        ({"valid": VALID}, r"Expected valid of shape \(3,\), got \(3, 3\)\."),
        ({"valid": torch.ones(3)}, r"Expected valid of dtype torch\.bool, got torch\.float32\."),
    ],
)
def test_function_rejects_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    parts = {name: torch.zeros(3, 2) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        attentive_routing(**{**parts, **changed})
