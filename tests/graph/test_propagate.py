"""Tests for mmfuse.graph.propagate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data

from mmfuse.graph import (
    LearnedGraph,
    WeightedEdges,
    borrow,
    fuse_graphs,
    knn_graph,
    knn_graphs,
    mix_graphs,
    propagate,
)
from mmfuse.types import Streams
from tests.outcomes import assert_same, places
from tests.strategies import streams, with_nan

few = settings(max_examples=25)
layers = st.integers(1, 3)


class Case(NamedTuple):
    """Streams of items, and edges between them."""

    x: Tensor  # (V, M, D)
    present: Tensor  # (V, M)
    edge_index: Tensor  # (2, N)
    edge_weight: Tensor  # (N,)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    items, edges = draw(st.integers(1, 8)), draw(st.integers(0, 20))
    x, present = draw(streams(lead=st.just((items,))))
    edge_index = torch.randint(0, items, (2, edges))
    return Case(x, present, edge_index, torch.rand(edges, dtype=torch.float64))


def edges_of(case: Case) -> list[tuple[int, int, float]]:
    pairs = case.edge_index.T.tolist()
    return [(a, b, w) for (a, b), w in zip(pairs, case.edge_weight.tolist(), strict=True)]


def naive_propagate(values: list[float], case: Case, num_layers: int) -> list[float]:
    for _ in range(num_layers):
        after = [0.0] * len(values)
        for source, target, weight in edges_of(case):
            after[target] += weight * values[source]
        values = after
    return values


def naive_borrow(
    values: list[float], there: list[bool], case: Case, num_layers: int
) -> tuple[list[float], list[bool]]:
    """One entry of one modality; ``values`` count only where there."""
    values = [value if seen else 0.0 for value, seen in zip(values, there, strict=True)]
    for _ in range(num_layers):
        after, filled = list(values), list(there)
        for i, seen in enumerate(there):
            lent = [(w, values[a]) for a, b, w in edges_of(case) if b == i and there[a]]
            total = sum(w for w, _ in lent)
            if not seen and total > 0:
                after[i], filled[i] = sum(w * v for w, v in lent) / total, True
        values, there = after, filled
    return values, there


@few
@given(case=cases(), num_layers=layers)
def test_propagation_matches_naive(case: Case, num_layers: int) -> None:
    present = case.present[:, 0]
    got = propagate(case.x, *case[2:], num_layers=num_layers)
    for place in places(case.x.shape[1:]):
        column = case.x[(slice(None), *place)].tolist()
        wanted = naive_propagate(column, case, num_layers)
        assert got[(slice(None), *place)].tolist() == pytest.approx(wanted)
    masked = propagate(case.x, *case[2:], num_layers=num_layers, present=present)
    zero = torch.where(present[:, None, None], case.x, 0.0)
    torch.testing.assert_close(masked, propagate(zero, *case[2:], num_layers=num_layers))


@few
@given(case=cases(), num_layers=layers)
def test_borrowing_matches_naive(case: Case, num_layers: int) -> None:
    got = borrow(*case, num_layers=num_layers)
    assert isinstance(got, Streams)
    for m, d in places(case.x.shape[1:]):
        column, there = case.x[:, m, d].tolist(), case.present[:, m].tolist()
        values, filled = naive_borrow(column, there, case, num_layers)
        assert got.x[:, m, d].tolist() == pytest.approx(values)
        assert got.present[:, m].tolist() == filled


# -- graphs in the place of edges ------------------------------------------------------------------


def graphs_over(items: int) -> list[Any]:
    features = {name: torch.rand(items, 3) for name in ("text", "image")}
    graphs = knn_graphs(features, 2, weight="similarity")
    fused, learned = fuse_graphs(graphs), LearnedGraph(graphs)()
    one = knn_graph(features["text"], 2)
    return [one, graphs["item", "text", "item"], fused, learned, mix_graphs(fused, learned, 0.3)]


def test_a_graph_stands_for_its_edges_and_weights() -> None:
    x, present = torch.randn(7, 2, 3), torch.rand(7, 2) < 0.6
    for graph in graphs_over(7):
        edges = (graph.edge_index, graph.edge_weight)
        assert_same(propagate(x, graph, num_layers=2), propagate(x, *edges, num_layers=2))
        assert_same(borrow(x, present, graph), borrow(x, present, *edges))
    edges = torch.randint(0, 7, (2, 9))
    assert_same(propagate(x, Data(edge_index=edges)), propagate(x, edges))  # without weights


def test_weights_of_a_graph_receive_gradients() -> None:
    graph = WeightedEdges(EDGES, torch.rand(2, requires_grad=True))
    propagate(X, graph).sum().backward()
    assert graph.edge_weight.grad is not None
    assert graph.edge_weight.grad.all()


# -- absent items ----------------------------------------------------------------------------------


@few
@given(case=cases(), num_layers=layers)
def test_nan_of_what_is_absent_reaches_nothing(case: Case, num_layers: int) -> None:
    outcomes = []
    for values in (case.x, with_nan(case.x, case.present)):
        x, weight = values.clone().requires_grad_(), case.edge_weight.clone().requires_grad_()
        filled, present = borrow(x, case.present, case.edge_index, weight, num_layers=num_layers)
        total = filled.square().sum() + weight.sum()
        outcomes.append((filled, present, *torch.autograd.grad(total, (x, weight))))
    assert_same(*outcomes)
    items = case.present[:, 0]
    dirty = propagate(with_nan(case.x, items), *case[2:], num_layers=num_layers, present=items)
    assert_same(dirty, propagate(case.x, *case[2:], num_layers=num_layers, present=items))


@few
@given(case=cases(), num_layers=layers)
def test_what_is_present_stays_untouched(case: Case, num_layers: int) -> None:
    filled, present = borrow(*case, num_layers=num_layers)
    assert_same(filled[case.present], case.x[case.present])
    assert present[case.present].all()
    assert (filled[~present] == 0).all()


@few
@given(case=cases(), num_layers=layers)
def test_only_ratios_of_weights_matter(case: Case, num_layers: int) -> None:
    filled, present = borrow(*case, num_layers=num_layers)
    more = borrow(*case[:3], 3 * case.edge_weight, num_layers=num_layers)
    torch.testing.assert_close(more, Streams(filled, present))
    ones = borrow(*case[:3], torch.ones_like(case.edge_weight), num_layers=num_layers)
    assert_same(borrow(*case[:3], num_layers=num_layers), ones)


def test_more_layers_reach_further() -> None:
    chain = torch.tensor([[0, 1, 2], [1, 2, 3]])
    x, present = torch.tensor([5.0, 0, 0, 0]).reshape(4, 1, 1), torch.arange(4)[:, None] == 0
    for num_layers in (1, 2, 3, 4):
        filled, there = borrow(x, present, chain, num_layers=num_layers)
        assert there.flatten().tolist() == [i <= num_layers for i in range(4)]
        assert filled.flatten().tolist() == [5.0 * (i <= num_layers) for i in range(4)]


def test_edges_of_weight_zero_do_not_help() -> None:
    x, present = torch.ones(2, 1, 1), torch.tensor([[True], [False]])
    filled, there = borrow(x, present, torch.tensor([[0], [1]]), torch.zeros(1))
    assert_same(filled.flatten(), torch.tensor([1.0, 0.0]))
    assert_same(there, present)


# -- shapes, precision, gradients ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_values_may_have_any_shape(shape: tuple[int, ...]) -> None:
    x, edges = torch.randn(5, *shape), torch.randint(0, 5, (2, 9))
    got = propagate(x, edges)
    assert got.shape == x.shape
    wanted = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype) -> None:
    x, present = torch.randn(5, 2, 3), torch.rand(5, 2) < 0.5
    edges, weight = torch.randint(0, 5, (2, 9)), torch.rand(9)
    assert propagate(x.to(dtype), edges, weight).dtype == dtype
    got = borrow(x.to(dtype), present, edges, weight).x
    assert got.dtype == dtype
    wanted = borrow(x.to(dtype).float(), present, edges, weight).x
    torch.testing.assert_close(got.float(), wanted, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradcheck(num_layers: int) -> None:
    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    present = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def flow(x: Tensor, weight: Tensor) -> Tensor:
        return propagate(x, edges, weight, num_layers=num_layers, present=present[:, 0])

    def filled(x: Tensor, weight: Tensor) -> Tensor:
        return borrow(x, present, edges, weight, num_layers=num_layers).x

    assert torch.autograd.gradcheck(flow, (x, weight))
    assert torch.autograd.gradcheck(filled, (x, weight))


# -- errors ----------------------------------------------------------------------------------------

X, PRESENT = torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool)
EDGES = torch.tensor([[0, 1], [1, 2]])


def test_propagation_rejects_bad_inputs() -> None:
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        propagate(X, EDGES, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected edge_index of shape \(2, N\), got \(2,\)\."):
        propagate(X, EDGES[:, 0])
    with pytest.raises(ValueError, match=r"edge_index of dtype torch\.int64, got torch\.float32\."):
        propagate(X, EDGES.float())
    with pytest.raises(ValueError, match=r"Expected edge_weight of shape \(2,\), got \(1,\)\."):
        propagate(X, EDGES, torch.ones(1))
    with pytest.raises(ValueError, match=r"Expected present of shape \(3,\), got \(3, 2\)\."):
        propagate(X, EDGES, present=PRESENT)
    with pytest.raises(ValueError, match=r"Expected edge_index < V = 2, got 2\."):
        propagate(X[:2], EDGES)
    with pytest.raises(ValueError, match=r"Expected x of shape \(V, \.\.\.\), got \(\)\."):
        propagate(X[0, 0, 0], EDGES)
    with pytest.raises(ValueError, match=r"Expected present as a tensor, got dict\."):
        propagate(X, EDGES, present={"text": PRESENT[:, 0]})
    with pytest.raises(ValueError, match=r"Expected x as a tensor, got dict\."):
        propagate({"text": X}, EDGES)


@pytest.mark.parametrize("function", [propagate, lambda x, *rest: borrow(x, PRESENT, *rest)])
def test_rejects_what_is_no_graph(function: Callable[..., Any]) -> None:
    graph, graphs = knn_graph(X[..., 0], 1), knn_graphs({"text": X[..., 0]}, 1)
    one = r"Expected edge_index as a tensor or one graph, Data or WeightedEdges, got {}\."
    for wrong in (graphs, {"text": graph}, (EDGES, torch.ones(2)), None):
        with pytest.raises(ValueError, match=one.format(type(wrong).__name__)):
            function(X, wrong)
    both = r"Expected no edge_weight beside a graph, Data, which has its own\."
    with pytest.raises(ValueError, match=both):
        function(X, graph, graph.edge_weight)
    with pytest.raises(ValueError, match=r"Expected edge_index of shape \(2, N\), got None\."):
        function(X, Data())
    with pytest.raises(ValueError, match=r"Expected edge_index < V = 2, got 2\."):
        propagate(X[:2], graph)


def test_borrowing_rejects_bad_inputs() -> None:
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        borrow(X, PRESENT, EDGES, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected x of shape \(V, M, D\), got \(3, 2\)\."):
        borrow(X[..., 0], PRESENT, EDGES)
    with pytest.raises(ValueError, match=r"Expected present of shape \(3, 2\), got \(3,\)\."):
        borrow(X, PRESENT[:, 0], EDGES)
    with pytest.raises(ValueError, match=r"Expected edge_index of shape \(2, N\), got \(1, 2\)\."):
        borrow(X, PRESENT, EDGES[:1])
    for masks, kind in (({"text": PRESENT[:, 0]}, "dict"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"Expected present as a tensor, got {kind}\."):
            borrow(X, masks, EDGES)


def test_rejects_whole_numbers_and_items_that_are_not_there() -> None:
    edges = torch.tensor([[0, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"Expected x of a floating dtype, got torch\.int64\."):
        propagate(torch.tensor([1, 10, 100]), edges)
    with pytest.raises(ValueError, match=r"Expected x of a floating dtype, got torch\.int64\."):
        borrow(torch.ones(3, 1, 1, dtype=torch.int64), torch.ones(3, 1) > 0, edges)
    with pytest.raises(ValueError, match=r"Expected edge_index >= 0, got -1\."):
        propagate(torch.ones(3), edges - 1)
