"""Tests for mmfuse.experts.top_k; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import NoisyTopKRouter, TopKRouter
from mmfuse.types import RouterOutput
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import sequences, sizes

many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))
kinds = pytest.mark.parametrize("kind", [TopKRouter, NoisyTopKRouter])

Case = tuple[Any, Tensor, Tensor]


@st.composite
def routers(draw: st.DrawFn, kind: type) -> Case:
    """A router in evaluation, tokens, and which of them are real."""
    case, experts = draw(histories), draw(sizes)
    options = st.sampled_from([None, True, False]).map(lambda normalize: {"normalize": normalize})
    arguments = draw(options) if kind is TopKRouter else {}
    top_k = draw(st.integers(1, experts))
    router = drawn(kind(case.x.shape[-1], experts, top_k, **arguments)).eval()
    return router, case.x.squeeze(-2), case.valid


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- reference: the formula, read aloud ------------------------------------------------------------


def product(weight: Tensor, token: Tensor) -> list[float]:
    return [sum(a * b for a, b in zip(row, token.tolist(), strict=True)) for row in weight.tolist()]


def best_of(scores: list[float], top_k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda e: -scores[e])[:top_k]


def cv_squared(amounts: list[float]) -> float:
    mean = sum(amounts) / len(amounts)
    if mean == 0:
        return 0.0
    return sum((a - mean) ** 2 for a in amounts) / len(amounts) / mean**2


def z_of(rows: list[list[float]]) -> float:
    squares = [math.log(sum(map(math.exp, row))) ** 2 for row in rows]
    return sum(squares) / max(len(rows), 1)


def check_row(routed: RouterOutput, row: Any, index: list[int], weight: list[float]) -> None:
    assert routed.expert_index[row].tolist() == index
    assert routed.expert_weight[row].tolist() == pytest.approx(weight)


@many
@given(routers(TopKRouter))
def test_matches_naive_choice_of_the_most_probable(case: Case) -> None:
    router, x, valid = case
    routed, experts, top_k = router(x, valid), router.num_experts, router.top_k
    logits, mean, counts = [], [0.0] * experts, [0] * experts
    for row in places(valid.shape):
        if not valid[row]:
            check_row(routed, row, [-1] * top_k, [0.0] * top_k)
            assert routed.router_probs[row].tolist() == [0.0] * experts
            continue
        logits.append(product(router.weight, x[row]))
        powers = [math.exp(score) for score in logits[-1]]
        p = [power / sum(powers) for power in powers]
        chosen = best_of(p, top_k)
        total = sum(p[k] for k in chosen) if router.normalize else 1.0
        check_row(routed, row, chosen, [p[k] / total for k in chosen])
        assert routed.router_logits[row].tolist() == pytest.approx(logits[-1])
        assert routed.router_probs[row].tolist() == pytest.approx(p)
        mean = [m + share / int(valid.sum()) for m, share in zip(mean, p, strict=True)]
        counts = [count + (e in chosen) for e, count in enumerate(counts)]
    f = [count / max(sum(counts), 1) for count in counts]
    balance = experts * sum(share * m for share, m in zip(f, mean, strict=True))
    assert {name: loss.item() for name, loss in routed.losses.items()} == pytest.approx(
        {"balance": balance, "z": z_of(logits)}
    )


@many
@given(routers(NoisyTopKRouter), st.booleans())
def test_matches_naive_choice_after_noise(case: Case, training: bool) -> None:
    """Given the noisy scores, whose distribution has a test of its own; the load is literal."""
    router, x, valid = case
    routed = router.train(training)(x, valid, generator=noise())
    experts, top_k = router.num_experts, router.top_k
    importance, load, rows = [0.0] * experts, [0.0] * experts, []
    for row in places(valid.shape):
        if not valid[row]:
            check_row(routed, row, [-1] * top_k, [0.0] * top_k)
            continue
        clean = product(router.weight, x[row])
        sigma = [math.log1p(math.exp(s)) + 0.01 for s in product(router.noise_weight, x[row])]
        h = routed.router_logits[row].tolist() if training else clean
        rows.append(h)
        chosen = best_of(h, top_k)
        total = sum(math.exp(h[k]) for k in chosen)
        g = {k: math.exp(h[k]) / total for k in chosen}
        check_row(routed, row, chosen, list(g.values()))
        for e in range(experts):
            importance[e] += g.get(e, 0.0)
            others = sorted(h[:e] + h[e + 1 :], reverse=True)
            if not training:
                load[e] += e in chosen
            elif top_k > len(others):  # everybody is chosen
                load[e] += 1.0
            else:
                z = (clean[e] - others[top_k - 1]) / sigma[e]
                load[e] += 0.5 * math.erfc(-z / math.sqrt(2))
    wanted = {"importance": cv_squared(importance), "load": cv_squared(load), "z": z_of(rows)}
    got = {name: loss.item() for name, loss in routed.losses.items()}
    assert got == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_smooth_load_is_the_chance_of_being_chosen_when_ones_own_noise_is_drawn_again(
    top_k: int,
) -> None:
    router, x = drawn(NoisyTopKRouter(3, 4, top_k)), torch.randn(1, 3, dtype=torch.float64)
    routed = router(x, generator=noise())
    noisy, clean = routed.router_logits[0], x[0] @ router.weight.T
    sigma = (x[0] @ router.noise_weight.T).exp().log1p() + 0.01
    load = []
    for e in range(4):
        again = noisy.repeat(200_000, 1)
        again[:, e] = clean[e] + sigma[e] * torch.randn(len(again), dtype=torch.float64)
        load.append(float((again.topk(top_k).indices == e).any(-1).double().mean()))
    assert max(load) - min(load) > 0.1  # else any constant would do
    assert routed.losses["load"].item() == pytest.approx(cv_squared(load), rel=0.02)


def test_noise_is_normal_with_the_deviation_of_the_formula() -> None:
    router, x = drawn(NoisyTopKRouter(3, 4)), torch.randn(3, dtype=torch.float64)
    noisy = router(x.expand(40_000, 3)).router_logits
    sigma = torch.tensor(product(router.noise_weight, x), dtype=x.dtype).exp().log1p() + 0.01
    unit = (noisy - torch.tensor(product(router.weight, x), dtype=x.dtype)) / sigma
    torch.testing.assert_close(unit.mean(0), torch.zeros(4).double(), atol=0.025, rtol=0)
    torch.testing.assert_close(unit.T.cov(), torch.eye(4).double(), atol=0.035, rtol=0)
    within = (unit.abs() < 1).double().mean(0)
    torch.testing.assert_close(within, torch.full_like(within, 0.6827), atol=0.015, rtol=0)


# -- properties ------------------------------------------------------------------------------------


def test_training_is_noisy_and_a_generator_reproduces_it() -> None:
    router, x = NoisyTopKRouter(3, 4), torch.randn(5, 3)
    first = router(x, generator=noise(3))
    assert not torch.equal(router(x).router_logits, router(x).router_logits)
    state = torch.get_rng_state()
    assert_same(router(x, generator=noise(3)), first)
    assert_same(torch.get_rng_state(), state)  # torch's own was left alone


@kinds
def test_all_experts_chosen_is_a_softmax_in_order_of_score(kind: type) -> None:
    router, x = drawn(kind(3, 4, 4)).eval(), torch.randn(5, 3, dtype=torch.float64)
    routed = router(x)
    probs = torch.softmax(x @ router.weight.T, -1).sort(-1, descending=True)
    torch.testing.assert_close(routed.expert_weight, probs.values)
    assert_same(routed.expert_index, probs.indices)


def test_everybody_chosen_has_an_even_smooth_load() -> None:
    router, x = NoisyTopKRouter(3, 4, 4), torch.randn(5, 3)
    assert_same(router(x).losses["load"].detach(), torch.tensor(0.0))


def test_one_choice_is_not_normalized_by_default_so_that_its_weight_teaches() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    router = drawn(TopKRouter(3, 4, 1))
    weight = router(x).expert_weight
    torch.testing.assert_close(weight, torch.softmax(x @ router.weight.T, -1).amax(-1, True))
    assert torch.autograd.grad(weight.sum(), router.weight)[0].abs().sum() > 0.01
    assert [TopKRouter(3, 4, k).normalize for k in (1, 2)] == [False, True]


def test_softplus_that_underflows_leaves_gradients_finite() -> None:
    """It is zero at -200 in float32; the deviation is not."""
    router = NoisyTopKRouter(1, 3, 1)
    with torch.no_grad():
        router.noise_weight.fill_(-200)
    outputs, gradients = outcome(router, torch.ones(4, 1))
    assert all(part.isfinite().all() for part in (*outputs, *gradients))


@kinds
def test_far_logits_neither_overflow_nor_underflow_the_weights(kind: type) -> None:
    router = kind(1, 3, 2).eval()
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
    routed = router(torch.tensor([[1e4]]))
    assert_same(routed.expert_weight.detach(), torch.tensor([[1.0, 0.0]]))
    assert routed.expert_index.tolist() == [[2, 1]]
