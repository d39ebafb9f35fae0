"""Tests for mmfuse.graph.neighbours."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.graph import nearest_neighbours
from tests.outcomes import assert_same
from tests.references import cosine
from tests.strategies import seeds, with_nan

few = settings(max_examples=30)


def naive_neighbours(
    features: Tensor, k: int, present: Tensor, similarity: str = "cosine"
) -> tuple[list[list[int]], list[list[float]]]:
    """Compare an item with all others, the lowest number first among equals."""
    rows, there = features.tolist(), present.tolist()
    index, values = [], []
    for i, row in enumerate(rows):
        scores = {}
        for j, other in enumerate(rows):
            if i != j and there[i] and there[j]:
                product = sum(a * b for a, b in zip(row, other, strict=True))
                scores[j] = cosine(row, other) if similarity == "cosine" else product
        order = sorted(scores, key=lambda j: (-scores[j], j))[:k]
        missing = k - len(order)
        index.append(order + [-1] * missing)
        values.append([scores[j] for j in order] + [0.0] * missing)
    return index, values


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Features (V, D) and which items have them."""
    items, width = draw(st.integers(2, 40)), draw(st.integers(1, 4))
    chance = draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    torch.manual_seed(draw(seeds))
    return torch.randn(items, width, dtype=torch.float64), torch.rand(items) < chance


blocks = st.sampled_from([None, 1, 3, 7, 100])
kinds = st.sampled_from(["cosine", "dot"])


@few
@given(table=tables(), k=st.integers(1, 9), block=blocks, kind=kinds)
def test_matches_naive(table: tuple[Tensor, Tensor], k: int, block: int | None, kind: str) -> None:
    features, present = table
    k = min(k, len(features) - 1)
    got = nearest_neighbours(features, k, present=present, similarity=kind, block_size=block)
    index, values = naive_neighbours(features, k, present, kind)
    torch.testing.assert_close(got.similarity, torch.tensor(values, dtype=torch.float64))
    if kind == "dot" or features.shape[1] > 1:  # else all are equal but for rounding
        assert got.item_index.tolist() == index


@few
@given(table=tables(), k=st.integers(1, 9), block=blocks)
def test_equals_come_in_the_order_of_their_numbers(
    table: tuple[Tensor, Tensor], k: int, block: int | None
) -> None:
    features, present = table[0].round(), table[1]  # small whole numbers: no rounding
    k = min(k, len(features) - 1)
    got = nearest_neighbours(features, k, present=present, similarity="dot", block_size=block)
    assert got.item_index.tolist() == naive_neighbours(features, k, present, "dot")[0]


def test_by_product_items_of_zeros_are_equals() -> None:
    index, scores = nearest_neighbours(torch.zeros(700, 3), 2, similarity="dot")
    assert index[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert (index[3:] == torch.tensor([0, 1])).all()
    assert (scores == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_a_catalogue_that_is_searched_by_chunks(dtype: torch.dtype, ties: bool) -> None:
    """So many columns that maxima of chunks are compared first."""
    features = torch.randn(2500, 4, dtype=dtype)
    features = features.round() if ties else features
    wanted = features.double() @ features.double().T
    wanted.fill_diagonal_(-torch.inf)
    values, index = wanted.sort(dim=-1, descending=True, stable=True)
    got = nearest_neighbours(features, 6, similarity="dot")
    torch.testing.assert_close(got.similarity, values[:, :6].to(dtype))
    assert ((got.item_index == index[:, :6]).double().mean() > 0.999).all()  # rounding apart
    if ties:
        assert_same(got.item_index, index[:, :6])


def test_is_the_same_in_blocks() -> None:
    features = torch.randn(300, 8, dtype=torch.float64)
    whole = nearest_neighbours(features, 5)
    for block in (1, 32, 299, 300, 1000):
        got = nearest_neighbours(features, 5, block_size=block)
        assert_same(got.item_index, whole.item_index)
        torch.testing.assert_close(got.similarity, whole.similarity)


# -- absent items ----------------------------------------------------------------------------------


@few
@given(table=tables(), k=st.integers(1, 9))
def test_nan_of_absent_items_reaches_nothing(table: tuple[Tensor, Tensor], k: int) -> None:
    features, present = table
    k = min(k, len(features) - 1)
    outcomes = []
    for table_of_items in (features, with_nan(features, present)):
        x = table_of_items.clone().requires_grad_()
        index, scores = nearest_neighbours(x, k, present=present)
        (gradient,) = torch.autograd.grad(scores.square().sum(), x)
        outcomes.append((index, scores, gradient))
    assert_same(*outcomes)
    index, scores, gradient = outcomes[1]
    assert (index[~present] == -1).all()
    assert (gradient[~present] == 0).all()
    assert not set(index[index >= 0].tolist()) & set((~present).nonzero().flatten().tolist())


@few
@given(table=tables(), k=st.integers(1, 9), block=blocks)
def test_by_cosine_items_of_zeros_are_absent(
    table: tuple[Tensor, Tensor], k: int, block: int | None
) -> None:
    features, present = table
    k, zeroed = min(k, len(features) - 1), features * present.unsqueeze(-1)
    wanted = nearest_neighbours(features, k, present=present, block_size=block)
    assert_same(nearest_neighbours(zeroed, k, block_size=block), wanted)
    some = present | (torch.rand(len(features)) < 0.5)
    assert_same(nearest_neighbours(zeroed, k, present=some, block_size=block), wanted)


def test_items_of_zeros_leave_gradients_alone() -> None:
    x = torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.3, 1.0]], requires_grad=True)
    index, scores = nearest_neighbours(x, 1)
    assert index.tolist() == [[2], [-1], [0]]
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any(-1).tolist() == [True, False, True]


@few
@given(table=tables())
def test_all_present_is_no_mask(table: tuple[Tensor, Tensor]) -> None:
    features = table[0]
    k, everyone = 1, torch.ones(len(features), dtype=torch.bool)
    assert_same(nearest_neighbours(features, k, present=everyone), nearest_neighbours(features, k))


def test_the_best_come_first_and_nobody_last() -> None:
    present = torch.arange(9) < 4
    index, scores = nearest_neighbours(torch.randn(9, 3), 5, present=present)
    assert ((index >= 0).sum(-1) == torch.where(present, 3, 0)).all()
    for row, here in zip(scores.tolist(), index.tolist(), strict=True):
        assert here == sorted(here, key=lambda j: j < 0)
        known = row[: sum(j >= 0 for j in here)]
        assert all(a >= b for a, b in pairwise(known))
        assert not any(row[len(known) :])


# -- precision and gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_in_float32(dtype: torch.dtype) -> None:
    features = torch.randn(50, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = nearest_neighbours(features, 4)
    wanted = nearest_neighbours(features.float(), 4)
    assert got.similarity.dtype == dtype
    assert_same(got.item_index, wanted.item_index)
    torch.testing.assert_close(got.similarity, wanted.similarity.to(dtype))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradcheck(similarity: str) -> None:
    present = torch.tensor([True, True, False, True, True])

    def similarities(x: Tensor) -> Tensor:
        return nearest_neighbours(x, 4, present=present, similarity=similarity).similarity

    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(similarities, x)


def test_the_gathered_similarities_are_those_of_the_search() -> None:
    x = torch.randn(60, 5)
    learned = nearest_neighbours(x.clone().requires_grad_(), 4)
    assert not nearest_neighbours(x, 4).similarity.requires_grad
    assert not learned.item_index.requires_grad
    torch.testing.assert_close(learned.similarity.detach(), nearest_neighbours(x, 4).similarity)


# -- errors ----------------------------------------------------------------------------------------

X = torch.ones(4, 2)
NAN = torch.tensor([[1.0], [torch.nan], [2.0]])


@pytest.mark.parametrize(
    ("features", "k", "options", "message"),
    [
        (X[0], 1, {}, r"Expected features of shape \(V, D_m\), got \(2,\)\."),
        (X.long(), 1, {}, r"Expected features of a floating dtype, got torch\.int64\."),
        (X, 0, {}, r"Expected k > 0, got 0\."),
        (X, 4, {}, r"Expected k < V = 4, got 4\."),
        (X, 1, {"similarity": "l2"}, r"similarity to be one of 'cosine', 'dot', got 'l2'\."),
        (X, 1, {"block_size": 0}, r"Expected block_size > 0, got 0\."),
        (X, 1, {"present": X[:, 0]}, r"Expected present of dtype torch\.bool, got torch\.float32"),
        (X, 1, {"present": X[:2, 0] > 0}, r"Expected present of shape \(4,\), got \(2,\)\."),
        (NAN, 1, {}, r"Expected finite .* in row 1; pass present=, false where"),
        (NAN, 1, {"present": NAN[:, 0].isnan()}, r"infinity in row 1, which is present\."),
        ({"text": X}, 1, {}, r"Expected features as a tensor, got dict\."),
        (X, 1, {"present": {"text": X[:, 0] > 0}}, r"Expected present as a tensor, got dict\."),
    ],
)
def test_rejects_bad_inputs(
    features: Tensor, k: int, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbours(features, k, **options)
