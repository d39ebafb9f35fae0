"""Tests for mmfuse.fusion.dynamic; test_registry.py has what all fusions promise alike."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.fusion import DynamicFusion
from mmfuse.types import Streams
from tests.outcomes import assert_same, drawn, places
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)
Vector = list[float]


class Example(NamedTuple):
    fusion: DynamicFusion
    case: Streams
    user: Tensor | None  # (..., D)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """A fusion with any target or none, streams, and users or none."""
    case = draw(streams())
    *lead, num_modalities, dim = case.x.shape
    target = draw(st.none() | st.integers(0, num_modalities - 1))
    user = torch.randn(*lead, dim, dtype=torch.float64) if draw(st.booleans()) else None
    return Example(drawn(DynamicFusion(dim, num_modalities, target=target)), case, user)


# -- reference: the formula, read aloud ------------------------------------------------------------


def softmax(fusion: DynamicFusion, scores: dict[int, float]) -> dict[int, float]:
    """Over the modalities that are there, and no others."""
    powers = {m: math.exp(fusion.sharpness.item() * score) for m, score in scores.items()}
    return {m: power / sum(powers.values()) for m, power in powers.items()}


def naive_weights(fusion: DynamicFusion, scores: dict[int, float]) -> dict[int, float]:
    others = {m: score for m, score in scores.items() if m != fusion.target}
    shares = softmax(fusion, others)
    if len(others) < len(scores):
        shares = {m: 2 * share / 3 for m, share in shares.items()}
        shares[fusion.target] = 1 / 3 if others else 1.0
    return shares


@few
@given(example=examples())
def test_matches_naive(example: Example) -> None:
    fusion, (x, present), user = example
    fused, weights, losses = fusion(x, present, user)
    for row in places(present.shape[:-1]):
        asked = (fusion.user if user is None else user[row]).tolist()
        there = {m: x[row][m].tolist() for m in range(x.shape[-2]) if present[row][m]}
        scores = {m: naive_linear([asked], vector)[0] for m, vector in there.items()}
        shares = naive_weights(fusion, scores)
        wanted = [sum(shares[m] * there[m][d] for m in there) for d in range(fusion.dim)]
        torch.testing.assert_close(fused[row], x.new_tensor(wanted))
        wanted = [shares.get(m, 0.0) for m in range(fusion.num_modalities)]
        torch.testing.assert_close(weights[row], x.new_tensor(wanted))
    assert losses == {}


@few
@given(example=examples())
def test_the_score_is_the_fusion_of_scores_of_the_paper(example: Example) -> None:
    """With an id, a third of its score and two thirds of the others'."""
    fusion, (x, present), user = example
    fused = fusion(x, present, user).fused
    for row in places(present.shape[:-1]):
        u = fusion.user if user is None else user[row]
        scores = {m: (u @ x[row][m]).item() for m in range(x.shape[-2]) if present[row][m]}
        own = scores.pop(fusion.target, None)
        shares = softmax(fusion, scores)
        mixed = sum(shares[m] * score for m, score in scores.items())
        if own is not None:
            mixed = (own + 2 * mixed) / 3 if scores else own
        assert (u @ fused[row]).item() == pytest.approx(mixed, abs=1e-9)


# -- properties ------------------------------------------------------------------------------------


@few
@given(example=examples())
def test_dropping_a_modality_equals_masking_it(example: Example) -> None:
    more, (x, present), user = example
    kept = [m for m in range(more.num_modalities) if m % 2 == 0]
    target = kept.index(more.target) if more.target in kept else None
    less = DynamicFusion(more.dim, len(kept), target=target).double()
    less.load_state_dict(more.state_dict())
    hidden = present.clone()
    hidden[..., 1::2] = False
    got, wanted = more(x, hidden, user), less(x[..., kept, :], present[..., kept], user)
    torch.testing.assert_close(got.fused, wanted.fused)
    torch.testing.assert_close(got.weights[..., kept], wanted.weights)


@few
@given(example=examples())
def test_weights_are_shares(example: Example) -> None:
    fusion, (x, present), user = example
    weights = fusion(x, present, user).weights
    torch.testing.assert_close(weights.sum(-1), present.any(-1).double())
    assert (weights >= 0).all()
    assert not weights[~present].any()


@few
@given(example=examples())
def test_nothing_present_gives_zero(example: Example) -> None:
    fusion, (x, present), user = example
    fused, weights, _ = fusion(x, torch.zeros_like(present), user)
    assert_same((fused, weights), (torch.zeros_like(fused), torch.zeros_like(weights)))


@pytest.mark.parametrize("target", [None, 0])
def test_one_modality_is_all_there_is(target: int | None) -> None:
    fusion, x = DynamicFusion(4, 1, target=target), torch.randn(3, 1, 4)
    fused, weights, _ = fusion(x, context=torch.randn(3, 4))
    assert_same((fused, weights), (x[:, 0], torch.ones(3, 1)))


@pytest.mark.parametrize("target", [0, 1, 2])
def test_who_is_alone_beside_an_absent_half_gets_all(target: int) -> None:
    fusion, x = DynamicFusion(4, 3, target=target), torch.randn(5, 3, 4)
    own = torch.arange(3).expand(5, 3) == target
    assert_same(fusion(x, own).fused, x[:, target])
    others = [m for m in range(3) if m != target]
    alone = DynamicFusion(4, 2)
    alone.load_state_dict(fusion.state_dict())
    torch.testing.assert_close(fusion(x, ~own).fused, alone(x[:, others]).fused)


def test_a_sharper_softmax_keeps_what_the_user_likes_best() -> None:
    fusion = DynamicFusion(4, 3).requires_grad_(False)
    x, user = torch.randn(6, 3, 4), torch.randn(6, 4)
    fusion.sharpness.fill_(1e4)
    best = torch.einsum("bmd,bd->bm", x, user).argmax(-1)
    torch.testing.assert_close(fusion(x, context=user).fused, x[torch.arange(6), best])
    fusion.sharpness.zero_()
    torch.testing.assert_close(fusion(x, context=user).fused, x.mean(-2))


def test_a_known_user_takes_the_place_of_the_learned_one() -> None:
    fusion, x = DynamicFusion(4, 3, target=1), torch.randn(6, 3, 4)
    torch.testing.assert_close(fusion(x), fusion(x, context=fusion.user.expand(6, 4)))
    assert not torch.allclose(fusion(x).fused, fusion(x, context=-fusion.user.expand(6, 4)).fused)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [-1, 2])
def test_rejects_a_target_that_is_no_modality(target: int) -> None:
    message = rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    with pytest.raises(ValueError, match=message):
        DynamicFusion(4, 2, target=target)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5), r"Expected context of shape \(3, 4\), got \(3, 5\)\."),
        ((4,), r"Expected context of shape \(3, 4\), got \(4,\)\."),
        ((1, 4), r"Expected context of shape \(3, 4\), got \(1, 4\)\."),
        ((3, 2, 4), r"Expected context of shape \(3, 4\), got \(3, 2, 4\)\."),
    ],
)
def test_rejects_users_who_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicFusion(4, 2)(torch.zeros(3, 2, 4), context=torch.zeros(shape))


def test_repr_tells_the_options() -> None:
    assert repr(DynamicFusion(4, 3)) == "DynamicFusion(dim=4, num_modalities=3, target=None)"
