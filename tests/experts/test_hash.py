"""Tests for mmfuse.experts.hash; test_routers.py has what all routers promise alike."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import HashRouter
from tests.outcomes import assert_same, places
from tests.strategies import seeds, sequences, sizes

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
def test_a_token_itself_changes_nothing(case: Case) -> None:
    router, x, context, valid = case
    wanted = router(x, valid, context)
    assert_same(router(torch.full_like(x, torch.nan), valid, context), wanted)


def test_all_experts_chosen_are_each_chosen_once() -> None:
    chosen = experts_of(HashRouter(20, 4, 4))
    assert {tuple(sorted(index)) for index in chosen} == {(0, 1, 2, 3)}


def test_a_router_made_without_memory_can_be_drawn_later() -> None:
    with torch.device("meta"):
        router = HashRouter(6, 3, counts=[5, 1, 1, 1, 1, 1], seed=3)
    router.to_empty(device="cpu").reset_parameters()
    assert_same(router.table, HashRouter(6, 3, counts=[5, 1, 1, 1, 1, 1], seed=3).table)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_categories_of_any_integer_dtype(dtype: torch.dtype) -> None:
    router, categories = HashRouter(5, 4), torch.arange(5)
    x = torch.zeros(5, 2)
    assert_same(router(x, context=categories.to(dtype)), router(x, context=categories))


# -- errors ----------------------------------------------------------------------------------------

CONTEXT = torch.tensor([[0, -100, 1], [2, 3, 4], [4, 4, 0]])


def test_rejects_counts_of_other_categories() -> None:
    with pytest.raises(ValueError, match=r"Expected counts of 3 categories, got 2 counts\."):
        HashRouter(3, 4, counts=[1, 2])


@pytest.mark.parametrize(
    ("x", "context", "message"),
    [
        ((), CONTEXT, r"Expected x of shape \(\.\.\., D\), got \(\)\."),
        ((3, 3, 2), None, r"Expected context of categories \(\.\.\.\), got None\."),
        ((3, 3, 2), CONTEXT[0], r"Expected context of shape \(3, 3\), got \(3,\)\."),
        ((3, 2), CONTEXT, r"Expected context of shape \(3,\), got \(3, 3\)\."),
        ((3, 3, 2), CONTEXT + 1, r"Expected context < num_categories = 5, got 5\."),
        ((3, 3, 2), CONTEXT.float(), r"Expected context of an integer dtype, got torch\.float32\."),
    ],
)
def test_rejects_inputs_that_do_not_fit(
    x: tuple[int, ...], context: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(5, 4)(torch.zeros(x), context=context)
