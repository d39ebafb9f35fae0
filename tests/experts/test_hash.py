"""Tests for mmfuse.experts.hash."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import HashRouter
from mmfuse.testing import assert_block_contract
from mmfuse.types import Router
from tests.outcomes import assert_same, places
from tests.strategies import seeds, sequences, sizes, with_nan

few = settings(max_examples=25)
many = settings(max_examples=50)
histories = sequences(num_modalities=st.just(1))
counted = st.lists(st.integers(0, 50), min_size=1, max_size=12)

Case = tuple[HashRouter, Tensor, Tensor, Tensor]


@st.composite
def routers(draw: st.DrawFn) -> Case:
    """A router, tokens, their categories, and which of them are real."""
    case, experts, categories = draw(histories), draw(sizes), draw(st.integers(1, 9))
    router = HashRouter(categories, experts, draw(st.integers(1, experts)), seed=draw(seeds))
    context = torch.randint(0, categories, case.valid.shape)
    context[torch.rand(case.valid.shape) < 0.3] = -100
    return router, case.x.squeeze(-2), context, case.valid


def experts_of(router: HashRouter) -> list[list[int]]:
    """The experts of every category, as the router tells."""
    categories = torch.arange(router.num_categories)
    return router(torch.zeros(len(categories), 1), context=categories).expert_index.tolist()


# -- reference: the assignment, read aloud ---------------------------------------------------------


@many
@given(routers())
def test_matches_naive_lookup_of_one_hash_for_each_category(case: Case) -> None:
    router, x, context, valid = case
    routed, hashes = router(x, valid, context), dict(enumerate(experts_of(router)))
    for row in places(valid.shape):
        index, weight = routed.expert_index[row].tolist(), routed.expert_weight[row].tolist()
        if not valid[row]:
            assert (index, weight) == ([-1] * router.top_k, [0.0] * router.top_k)
            continue
        assert index == hashes.setdefault(int(context[row]), index)  # the unknown's is its own
        assert len(set(index)) == router.top_k
        assert set(index) <= set(range(router.num_experts))
        assert weight == [1 / router.top_k] * router.top_k
    assert routed.losses == {}
    assert routed.router_logits is None


@many
@given(counted, sizes, st.data(), seeds)
def test_matches_naive_assignment_to_the_least_load_so_far(
    counts: list[int], experts: int, data: st.DataObject, seed: int
) -> None:
    """Counts that differ, so that there is one order of frequency."""
    counts = [count + 100 * i for i, count in enumerate(counts)]
    top_k = data.draw(st.integers(1, experts))
    chosen = experts_of(HashRouter(len(counts), experts, top_k, counts=counts, seed=seed))
    load = [0] * experts
    for category in sorted(range(len(counts)), key=lambda c: -counts[c]):
        others = [load[e] for e in range(experts) if e not in chosen[category]]
        assert all(load[e] <= other for e in chosen[category] for other in others)
        for e in chosen[category]:
            load[e] += counts[category]


# -- the assignment --------------------------------------------------------------------------------


@many
@given(st.integers(1, 30), sizes, st.data(), seeds)
def test_experts_have_the_same_number_of_categories_up_to_one(
    categories: int, experts: int, data: st.DataObject, seed: int
) -> None:
    top_k = data.draw(st.integers(1, experts))
    chosen = experts_of(HashRouter(categories, experts, top_k, seed=seed))
    shares = [sum(e in index for index in chosen) for e in range(experts)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("top_k", [1, 2])
def test_counts_even_out_the_load_of_tokens(top_k: int) -> None:
    counts = [1000 / (rank + 1) for rank in range(200)]

    def load(router: HashRouter) -> list[float]:
        pairs = list(zip(experts_of(router), counts, strict=True))
        return [sum(count for chosen, count in pairs if e in chosen) for e in range(4)]

    even = load(HashRouter(200, 4, top_k, counts=counts))
    blind = load(HashRouter(200, 4, top_k))
    assert max(even) / min(even) < 1.01
    assert max(blind) / min(blind) > 1.1


def test_a_seed_draws_the_assignment_and_leaves_torch_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (HashRouter(50, 4, 2, seed=seed) for seed in (3, 3, 4))
    assert experts_of(first) == experts_of(again)
    assert experts_of(first) != experts_of(other)
    assert_same(torch.get_rng_state(), state)


def test_the_experts_of_a_category_are_no_running_number() -> None:
    """Neighbouring categories would share a pattern."""
    chosen = [index for (index,) in experts_of(HashRouter(40, 4))]
    steps = {(b - a) % 4 for a, b in itertools.pairwise(chosen)}
    assert steps == {0, 1, 2, 3}


def test_the_assignment_is_saved() -> None:
    router, fresh = HashRouter(50, 4, seed=1), HashRouter(50, 4, seed=2)
    fresh.load_state_dict(router.state_dict())
    assert experts_of(fresh) == experts_of(router)
    assert list(router.parameters()) == []


def test_the_unknown_share_one_hash_which_is_no_category_from_the_end() -> None:
    """With 150 categories, -100 would be one of them to an index."""
    seen = []
    for seed in range(20):
        router = HashRouter(150, 8, seed=seed)
        index = router(torch.zeros(3, 1), context=torch.full((3,), -100)).expert_index
        assert len(set(index.flatten().tolist())) == 1
        seen.append(int(index[0]) == experts_of(router)[151 - 100][0])
    assert 0 < sum(seen) < 10  # alike by chance alone


def test_the_unknown_do_not_all_go_to_one_expert_whatever_the_seed() -> None:
    context = torch.tensor(-100)
    routed = [HashRouter(4, 4, seed=s)(torch.zeros(1), context=context) for s in range(40)]
    assert {int(one.expert_index) for one in routed} == {0, 1, 2, 3}


# -- properties ------------------------------------------------------------------------------------


@few
@given(routers())
def test_nothing_in_padding_changes_anything_nor_does_a_token_itself(case: Case) -> None:
    router, x, context, valid = case
    spoilt = torch.where(valid, context, 10**9)
    wanted = router(x, valid, context)
    assert_same(router(with_nan(x, valid), valid, spoilt), wanted)
    assert_same(router(torch.full_like(x, torch.nan), valid, context), wanted)


@few
@given(routers(), sizes)
def test_padding_is_as_if_it_were_not_there(case: Case, padding: int) -> None:
    """On the left as on the right."""
    router, x, context, _ = case
    alone = router(x, context=context)
    zeros = torch.zeros(*x.shape[:-2], padding, x.shape[-1], dtype=x.dtype)
    off, on = torch.zeros(zeros.shape[:-1]) > 0, torch.ones(x.shape[:-1]) > 0
    none = off.long()
    left = router(
        torch.cat([zeros, x], -2), torch.cat([off, on], -1), torch.cat([none, context], -1)
    )
    right = router(
        torch.cat([x, zeros], -2), torch.cat([on, off], -1), torch.cat([context, none], -1)
    )
    for name in ("expert_weight", "expert_index"):
        assert_same(getattr(left, name)[..., padding:, :], getattr(alone, name))
        assert_same(getattr(right, name)[..., :-padding, :], getattr(alone, name))


@few
@given(routers())
def test_weights_sum_to_one(case: Case) -> None:
    router, x, context, valid = case
    sums = router(x, valid, context).expert_weight.sum(-1)
    torch.testing.assert_close(sums, valid.double())


@few
@given(routers())
def test_none_means_all_valid(case: Case) -> None:
    router, x, context, valid = case
    full = torch.ones_like(valid)
    assert_same(router(x, full, context), router(x, context=context))


@few
@given(routers())
def test_training_and_evaluation_are_the_same_and_deterministic(case: Case) -> None:
    router, x, context, valid = case
    wanted = router.eval()(x, valid, context)
    assert_same(router(x, valid, context), wanted)
    assert_same(router.train()(x, valid, context), wanted)


def test_all_experts_chosen_are_each_chosen_once() -> None:
    chosen = experts_of(HashRouter(20, 4, 4))
    assert {tuple(sorted(index)) for index in chosen} == {(0, 1, 2, 3)}


def test_a_single_expert_gets_everything() -> None:
    context = torch.tensor([0, 4, -100])
    routed = HashRouter(5, 1)(torch.randn(3, 2), context=context)
    assert_same(routed.expert_weight, torch.ones(3, 1))
    assert_same(routed.expert_index, torch.zeros(3, 1, dtype=torch.int64))


def test_where_all_is_padding_nobody_is_chosen() -> None:
    valid = torch.zeros(2, 5) > 0
    routed = HashRouter(3, 4, 2)(torch.full((2, 5, 3), torch.nan), valid, valid.long())
    assert_same(routed.expert_weight, torch.zeros(2, 5, 2))
    assert_same(routed.expert_index, torch.full((2, 5, 2), -1))


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_tokens_choose_nobody(shape: tuple[int, ...]) -> None:
    context = torch.zeros(shape, dtype=torch.int64)
    for valid in (None, torch.ones(shape, dtype=torch.bool)):
        routed = HashRouter(3, 4, 2)(torch.zeros(*shape, 3), valid, context)
        assert_same(routed.expert_weight, torch.zeros(*shape, 2))
        assert_same(routed.expert_index, torch.zeros(*shape, 2, dtype=torch.int64))


def test_bfloat16_stays_bfloat16_and_does_not_touch_the_choice() -> None:
    router, context = HashRouter(300, 300), torch.arange(300)
    wanted = router(torch.zeros(300, 2), context=context)
    routed = router.bfloat16()(torch.zeros(300, 2).bfloat16(), context=context)
    assert_same(routed.expert_weight, wanted.expert_weight.bfloat16())
    assert_same(routed.expert_index, wanted.expert_index)


def test_autocast_does_not_touch_the_router() -> None:
    router, x, context = HashRouter(9, 4, 3), torch.randn(9, 2), torch.arange(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = router(x, context=context)
    assert_same(rounded, router(x, context=context))


def test_is_a_router() -> None:
    assert isinstance(HashRouter(3, 4), Router)


# -- contract --------------------------------------------------------------------------------------

VALID = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])
CONTEXT = torch.tensor([[0, -100, 1], [2, 3, 4], [4, 4, 0]])


@pytest.mark.parametrize("arguments", [{}, {"top_k": 3}, {"counts": [5, 4, 3, 2, 1]}])
@pytest.mark.parametrize("valid", [None, VALID], ids=["full", "padded"])
def test_contract(arguments: dict[str, Any], valid: Tensor | None) -> None:
    x = torch.randn(3, 3, 2)
    x = x if valid is None else with_nan(x, valid)
    router = HashRouter(5, 4, **arguments)
    assert_block_contract(router, x, valid, keywords={"context": CONTEXT})


def test_the_table_has_the_wanted_device() -> None:
    assert HashRouter(5, 4, device="meta").table.is_meta
    assert HashRouter(5, 4, device="cpu").table.device.type == "cpu"


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_categories": 0}, r"Expected num_categories > 0, got 0\."),
        ({"num_experts": -1}, r"Expected num_experts > 0, got -1\."),
        ({"top_k": 0}, r"Expected top_k > 0, got 0\."),
        ({"top_k": 5}, r"Expected top_k <= num_experts = 4, got 5\."),
        ({"counts": [1, 2]}, r"Expected counts of 3 categories, got 2 counts\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(**{"num_categories": 3, "num_experts": 4, **arguments})


@pytest.mark.parametrize(
    ("x", "valid", "context", "message"),
    [
        ((), None, CONTEXT, r"Expected x of shape \(\.\.\., D\), got \(\)\."),
        ((3, 3, 2), None, None, r"Expected context of categories \(\.\.\.\), got None\."),
        ((3, 3, 2), None, CONTEXT[0], r"Expected context of shape \(3, 3\), got \(3,\)\."),
        ((3, 2), None, CONTEXT, r"Expected context of shape \(3,\), got \(3, 3\)\."),
        ((3, 3, 2), VALID[:2], CONTEXT, r"Expected valid of shape \(3, 3\), got \(2, 3\)\."),
        ((3, 3, 2), VALID.int(), CONTEXT, r"Expected valid of dtype torch\.bool, got torch\.int"),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    x: tuple[int, ...], valid: Tensor | None, context: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(5, 4)(torch.zeros(x), valid, context)


def test_repr() -> None:
    wanted = "HashRouter(num_categories=5, num_experts=4, top_k=2, seed=7)"
    assert str(HashRouter(5, 4, 2, seed=7)) == wanted
