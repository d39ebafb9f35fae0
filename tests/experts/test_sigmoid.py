"""Tests for mmfuse.experts.sigmoid."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import SigmoidRouter
from mmfuse.testing import assert_block_contract
from mmfuse.types import Router
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import seeds, sequences, sizes, with_nan

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
    for name in ("expert_weight", "expert_index", "router_logits", "router_probs"):
        wanted = getattr(alone, name)
        torch.testing.assert_close(getattr(left, name)[..., padding:, :], wanted)
        torch.testing.assert_close(getattr(right, name)[..., :-padding, :], wanted)
    torch.testing.assert_close(left.losses, alone.losses)
    torch.testing.assert_close(right.losses, alone.losses)


@few
@given(routers())
def test_normalized_weights_sum_to_one(case: Case) -> None:
    router, x, valid = case
    sums = router(x, valid).expert_weight.sum(-1)
    if router.normalize:
        torch.testing.assert_close(sums, valid.double())
    else:
        assert (sums <= valid * router.top_k).all()


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


def test_a_single_token_needs_no_leading_dimension() -> None:
    router, x = SigmoidRouter(3, 4), torch.randn(3)
    single, batch = router(x), router(x.unsqueeze(0))
    torch.testing.assert_close(single.expert_weight, batch.expert_weight[0])
    torch.testing.assert_close(single.losses, batch.losses)


def test_where_all_is_padding_nothing_happens() -> None:
    router, x = SigmoidRouter(3, 4), torch.full((2, 5, 3), torch.nan)
    valid = torch.zeros(2, 5) > 0
    routed = router(x, valid)
    assert_same(routed.expert_weight.detach(), torch.zeros(2, 5, 2))
    assert_same(routed.expert_index, torch.full((2, 5, 2), -1))
    assert {loss.item() for loss in routed.losses.values()} == {0.0}
    for gradient in outcome(router, x, valid)[1]:
        assert_same(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_tokens_have_no_losses_and_no_load(shape: tuple[int, ...]) -> None:
    router, x = SigmoidRouter(3, 4), torch.zeros(*shape, 3)
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        routed = router(x, valid)
        assert routed.expert_index.shape == (*shape, 2)
        assert {loss.item() for loss in routed.losses.values()} == {0.0}
        router.update_bias(routed.expert_index)
    assert_same(router.expert_bias, torch.zeros(4))


@pytest.mark.parametrize("normalize", [False, True])
def test_scores_that_all_underflow_give_zeros(normalize: bool) -> None:
    """The sigmoid of -200 is zero in float32."""
    router = SigmoidRouter(1, 3, 2, normalize=normalize)
    with torch.no_grad():
        router.weight.fill_(-200)
    assert_same(router(torch.ones(4, 1)).expert_weight.detach(), torch.zeros(4, 2))
    outputs, gradients = outcome(router, torch.ones(4, 1))
    assert all(part.isfinite().all() for part in (*outputs, *gradients))


def test_bfloat16_stays_bfloat16_and_scores_are_those_of_float32() -> None:
    router, x = SigmoidRouter(8, 4).bfloat16(), torch.randn(20, 8).bfloat16()
    routed, wide = router(x), SigmoidRouter(8, 4)
    wide.load_state_dict(router.state_dict())
    wanted = wide(x.float())
    assert_same(routed.expert_weight, wanted.expert_weight.bfloat16())
    assert_same(routed[1:], wanted[1:])


def test_autocast_does_not_touch_the_router() -> None:
    router, x = SigmoidRouter(8, 4), torch.randn(20, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = router(x)
    assert_same(rounded, router(x))


def test_is_a_router() -> None:
    assert isinstance(SigmoidRouter(3, 4), Router)


# -- gradients and contract ------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(top_k: int, normalize: bool) -> None:
    router = biased(SigmoidRouter(2, 3, top_k, normalize=normalize))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)

    def route(x: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        routed = router(x, VALID)
        return routed.expert_weight, routed.router_probs, *routed.losses.values()

    assert torch.autograd.gradcheck(route, (x, router.weight))


TOKENS = torch.arange(60).reshape(3, 20) % 5 > 0


@pytest.mark.parametrize("arguments", [{}, {"top_k": 1}, {"normalize": False}])
@pytest.mark.parametrize("valid", [None, TOKENS], ids=["full", "padded"])
def test_contract(arguments: dict[str, Any], valid: Tensor | None) -> None:
    x = torch.randn(3, 20, 8)
    x = x if valid is None else with_nan(x, valid)
    assert_block_contract(SigmoidRouter(8, 4, **arguments), x, valid)


def test_parameters_have_the_wanted_dtype_and_device() -> None:
    block = SigmoidRouter(2, 3, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}
    assert block.expert_bias.is_meta


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"num_experts": -1}, r"Expected num_experts > 0, got -1\."),
        ({"top_k": 0}, r"Expected top_k > 0, got 0\."),
        ({"top_k": 5}, r"Expected top_k <= num_experts = 4, got 5\."),
        ({"bias_rate": 0.0}, r"Expected bias_rate > 0, got 0\.0\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigmoidRouter(**{"dim": 2, "num_experts": 4, **arguments})


@pytest.mark.parametrize(
    ("x", "valid", "message"),
    [
        ((3, 4), None, r"Expected x of shape \(\.\.\., 2\), got \(3, 4\)\."),
        ((3, 3, 2), VALID[:2], r"Expected valid of shape \(3, 3\), got \(2, 3\)\."),
        ((3, 3, 2), VALID.int(), r"Expected valid of dtype torch\.bool, got torch\.int32\."),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    x: tuple[int, ...], valid: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SigmoidRouter(2, 3)(torch.zeros(x), valid)


def test_repr() -> None:
    wanted = "SigmoidRouter(dim=2, num_experts=3, top_k=1, normalize=False, bias_rate=0.5)"
    assert str(SigmoidRouter(2, 3, 1, bias_rate=0.5)) == wanted
