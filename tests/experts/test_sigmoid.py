"""Tests for mmfuse.experts.sigmoid; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import SigmoidRouter
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import seeds, sequences, sizes

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))

Case = tuple[SigmoidRouter, Tensor, Tensor]


def biased(router: SigmoidRouter) -> SigmoidRouter:
    """Drawn at random, the bias as well."""
    drawn(router).expert_bias.normal_()
    return router


@st.composite
def routers(draw: st.DrawFn) -> Case:
    """A router, tokens, and which of them are real."""
    case, experts = draw(histories), draw(sizes)
    top_k, normalize = draw(st.integers(1, experts)), draw(st.sampled_from([None, True, False]))
    router = biased(SigmoidRouter(case.x.shape[-1], experts, top_k, normalize=normalize))
    return router, case.x.squeeze(-2), case.valid


# -- reference: the formula, read aloud ------------------------------------------------------------


@many
@given(routers())
def test_matches_naive(case: Case) -> None:
    router, x, valid = case
    routed, experts, top_k = router(x, valid), router.num_experts, router.top_k
    bias, real = router.expert_bias.tolist(), int(valid.sum())
    mean, counts, z = [0.0] * experts, [0] * experts, 0.0
    for row in places(valid.shape):
        index, weight = routed.expert_index[row].tolist(), routed.expert_weight[row].tolist()
        if not valid[row]:
            assert (index, weight) == ([-1] * top_k, [0.0] * top_k)
            assert routed.router_probs[row].tolist() == [0.0] * experts
            continue
        token = x[row].tolist()
        logits = [sum(a * b for a, b in zip(w, token, strict=True)) for w in router.weight.tolist()]
        s = [1 / (1 + math.exp(-logit)) for logit in logits]
        chosen = sorted(range(experts), key=lambda e: -s[e] - bias[e])[:top_k]
        assert index == chosen
        total = sum(s[k] for k in chosen) if router.normalize else 1.0
        assert weight == pytest.approx([s[k] / total for k in chosen])
        probs = [score / sum(s) for score in s]
        assert routed.router_probs[row].tolist() == pytest.approx(probs)
        assert routed.router_logits[row].tolist() == pytest.approx(logits)
        mean = [m + p / real for m, p in zip(mean, probs, strict=True)]
        counts = [count + (e in chosen) for e, count in enumerate(counts)]
        z += math.log(sum(map(math.exp, logits))) ** 2 / real
    share = [count / max(sum(counts), 1) for count in counts]
    balance = experts * sum(f * m for f, m in zip(share, mean, strict=True))
    losses = {name: loss.item() for name, loss in routed.losses.items()}
    assert losses == pytest.approx({"balance": balance, "z": z})


@many
@given(sizes, st.lists(st.integers(-1, 3), max_size=12), seeds)
def test_update_matches_naive_steps(experts: int, choices: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    router = biased(SigmoidRouter(2, experts, 1, bias_rate=0.25))
    before, chosen = router.expert_bias.tolist(), [c for c in choices if c < experts]
    router.update_bias(torch.tensor(chosen, dtype=torch.int64).unsqueeze(-1))
    n = [chosen.count(e) for e in range(experts)]
    mean = sum(n) / experts
    wanted = [
        b + 0.25 * ((mean > count) - (mean < count)) for b, count in zip(before, n, strict=True)
    ]
    assert router.expert_bias.tolist() == pytest.approx(wanted)


# -- the bias --------------------------------------------------------------------------------------


def test_updates_even_out_a_skewed_load() -> None:
    """The last feature is constant and prefers the first expert."""
    router = SigmoidRouter(5, 4, 1, bias_rate=0.005)
    x = torch.cat([torch.randn(1000, 4), torch.ones(1000, 1)], -1)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4, 5))
        router.weight[:, -1] = torch.tensor([4.0, 0.0, 0.0, -3.0])

    def load() -> list[int]:
        return router(x).expert_index.flatten().bincount(minlength=4).tolist()

    assert max(load()) > 900
    for _ in range(400):
        router.update_bias(router(x).expert_index)
    assert max(load()) < 300
    assert min(load()) > 200


def test_small_steps_are_not_lost_in_bfloat16() -> None:
    """A thousand steps of 0.001 towards expert 1, which gets nothing."""
    router = SigmoidRouter(3, 2, 1, bias_rate=1e-3).bfloat16()
    for _ in range(1000):
        router.update_bias(torch.zeros(4, 1, dtype=torch.int64))
    torch.testing.assert_close(
        router.expert_bias.float(), torch.tensor([-1.0, 1.0]), atol=0.01, rtol=0
    )


@few
@given(routers(), st.booleans())
def test_forward_never_changes_the_bias(case: Case, training: bool) -> None:
    router, x, valid = case
    before = router.expert_bias.clone()
    outcome(router.train(training), x, valid)
    assert_same(router.expert_bias, before)


@few
@given(routers())
def test_bias_affects_the_choice_and_not_how_much_it_counts(case: Case) -> None:
    router, x, _ = case
    last = router.num_experts - 1
    router.expert_bias[last] += 100
    routed = router(x)
    assert (routed.expert_index[..., 0] == last).all()  # who is best first, bias included
    scores = torch.sigmoid(x @ router.weight.T).gather(-1, routed.expert_index)
    scores = scores / scores.sum(-1, keepdim=True) if router.normalize else scores
    torch.testing.assert_close(routed.expert_weight, scores)


def test_where_all_are_chosen_the_bias_is_only_an_order() -> None:
    router, x = biased(SigmoidRouter(3, 4, 4)), torch.randn(5, 3, dtype=torch.float64)
    routed = router(x)
    wide = torch.zeros(5, 4).double().scatter(-1, routed.expert_index, routed.expert_weight)
    scores = torch.sigmoid(x @ router.weight.T)
    torch.testing.assert_close(wide, scores / scores.sum(-1, keepdim=True))
    torch.testing.assert_close(wide, routed.router_probs)


def test_the_bias_has_no_gradient_and_is_saved() -> None:
    router = biased(SigmoidRouter(3, 4))
    assert dict(router.named_parameters()).keys() == {"weight"}
    assert not router.expert_bias.requires_grad
    fresh = SigmoidRouter(3, 4).double()
    fresh.load_state_dict(router.state_dict())
    assert_same(fresh.expert_bias, router.expert_bias)
    fresh.reset_parameters()
    assert_same(fresh.expert_bias, torch.zeros(4).double())


def test_choices_of_all_processes_count() -> None:
    """Two tokens for expert 0 here; four for expert 1 elsewhere."""
    router = SigmoidRouter(3, 2, 1, bias_rate=0.5)

    def add_the_others(counts: Tensor) -> None:
        counts += torch.tensor([0, 4])

    path = "mmfuse.experts.sigmoid.distributed"
    with (
        mock.patch(f"{path}.is_available", return_value=True),
        mock.patch(f"{path}.is_initialized", return_value=True),
        mock.patch(f"{path}.all_reduce", side_effect=add_the_others, create=True),
    ):
        router.update_bias(torch.tensor([[0], [0]]))
    assert router.expert_bias.tolist() == [0.5, -0.5]


def test_padding_does_not_count_as_load() -> None:
    router = SigmoidRouter(3, 4, 2, bias_rate=0.5)
    router.update_bias(router(torch.zeros(6, 3), torch.zeros(6) > 0).expert_index)
    assert_same(router.expert_bias, torch.zeros(4))


# -- properties ------------------------------------------------------------------------------------


def test_one_choice_is_not_normalized_by_default_so_that_its_weight_teaches() -> None:
    router, x = drawn(SigmoidRouter(3, 4, 1)), torch.randn(5, 3, dtype=torch.float64)
    weight = router(x).expert_weight
    torch.testing.assert_close(weight, torch.sigmoid(x @ router.weight.T).amax(-1, True))
    assert torch.autograd.grad(weight.sum(), router.weight)[0].abs().sum() > 0.01
    assert [SigmoidRouter(3, 4, k).normalize for k in (1, 2)] == [False, True]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_single_expert_gets_everything(normalize: bool) -> None:
    router, x = SigmoidRouter(3, 1, 1, normalize=normalize), torch.randn(5, 3)
    routed = router(x)
    wanted = torch.ones(5, 1) if normalize else torch.sigmoid(x @ router.weight.T)
    torch.testing.assert_close(routed.expert_weight, wanted)
    assert_same(routed.expert_index, torch.zeros(5, 1, dtype=torch.int64))
    router.update_bias(routed.expert_index)
    assert_same(router.expert_bias, torch.zeros(1))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_tokens_are_no_load(shape: tuple[int, ...]) -> None:
    router, x = SigmoidRouter(3, 4), torch.zeros(*shape, 3)
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        router.update_bias(router(x, valid).expert_index)
    assert_same(router.expert_bias, torch.zeros(4))


@pytest.mark.parametrize("normalize", [False, True])
def test_scores_that_all_underflow_still_share_evenly(normalize: bool) -> None:
    """The sigmoid of -200 is zero in float32, its logarithm is not."""
    router = SigmoidRouter(1, 3, 2, normalize=normalize)
    with torch.no_grad():
        router.weight.fill_(-200)
    routed = router(torch.ones(4, 1))
    assert_same(routed.expert_weight.detach(), torch.full((4, 2), 0.5 * normalize))
    torch.testing.assert_close(routed.router_probs, torch.full((4, 3), 1 / 3))
    outputs, gradients = outcome(router, torch.ones(4, 1))
    assert all(part.isfinite().all() for part in (*outputs, *gradients))


def test_the_bias_is_float32_even_where_half_precision_is_the_default() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        router = SigmoidRouter(3, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert router.weight.dtype == torch.bfloat16
    assert router.expert_bias.dtype == torch.float32
    assert SigmoidRouter(3, 4, dtype=torch.float64).expert_bias.dtype == torch.float64
