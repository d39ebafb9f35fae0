"""Tests for mmfuse.graph.knn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.graph import knn_graph, knn_graphs, nearest_neighbours
from tests.outcomes import assert_same
from tests.strategies import seeds, with_nan

few = settings(max_examples=25)
each_weight = pytest.mark.parametrize("weight", ["binary", "similarity"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Features (V, D), which items have them, and k."""
    items, width = draw(st.integers(2, 20)), draw(st.integers(1, 4))
    chance = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    torch.manual_seed(draw(seeds))
    k = min(draw(st.integers(1, 5)), items - 1)
    return torch.randn(items, width, dtype=torch.float64), torch.rand(items) < chance, k


def naive_adjacency(
    features: Tensor, k: int, present: Tensor, weight: str, normalize: bool
) -> Tensor:
    """A dense matrix: row i says what counts for item i."""
    near = nearest_neighbours(features, k, present=present)
    items = len(features)
    a = [[0.0] * items for _ in range(items)]
    for i in range(items):
        pairs = zip(near.item_index[i].tolist(), near.similarity[i].tolist(), strict=True)
        for j, value in pairs:
            if j >= 0 and value > 0:
                a[i][j] = 1.0 if weight == "binary" else value
    degree = [sum(row) for row in a]
    for i in range(items):
        for j in range(items):
            if normalize and a[i][j]:
                both = degree[i] * degree[j]
                a[i][j] = a[i][j] / math.sqrt(both) if both else 0.0
    return torch.tensor(a, dtype=torch.float64)


def dense(graph: object) -> Tensor:
    matrix = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=graph.edge_weight.dtype)
    source, target = graph.edge_index
    matrix[target, source] = graph.edge_weight
    return matrix


@each_weight
@pytest.mark.parametrize("normalize", [False, True])
@few
@given(table=tables())
def test_matches_naive(weight: str, normalize: bool, table: tuple[Tensor, Tensor, int]) -> None:
    features, present, k = table
    graph = knn_graph(features, k, present=present, weight=weight, normalize=normalize)
    wanted = naive_adjacency(features, k, present, weight, normalize)
    torch.testing.assert_close(dense(graph), wanted)
    assert graph.validate()


@few
@given(table=tables())
def test_edges_lead_from_the_neighbours_to_the_item(table: tuple[Tensor, Tensor, int]) -> None:
    features, present, k = table
    index, similarity = nearest_neighbours(features, k, present=present)
    source, target = knn_graph(features, k, present=present).edge_index
    assert_same(source, index[similarity > 0])
    assert_same(target.bincount(minlength=len(features)), (similarity > 0).sum(-1))
    assert (target.diff() >= 0).all()


def test_full_binary_rows_have_equal_weights_that_sum_to_one() -> None:
    graph = knn_graph(torch.rand(30, 4), k=5)
    torch.testing.assert_close(graph.edge_weight, torch.full((150,), 1 / 5))


@each_weight
@few
@given(table=tables())
def test_nan_of_absent_items_reaches_nothing(
    weight: str, table: tuple[Tensor, Tensor, int]
) -> None:
    features, present, k = table
    clean = knn_graph(features, k, present=present, weight=weight)
    dirty = knn_graph(with_nan(features, present), k, present=present, weight=weight)
    assert_same(dirty.edge_index, clean.edge_index)
    assert_same(dirty.edge_weight, clean.edge_weight)
    ends = clean.edge_index.flatten()
    assert present[ends].all()


@each_weight
def test_only_what_is_alike_is_connected(weight: str) -> None:
    """Opposite, orthogonal or zero: no edge."""
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.6, 0.8]])
    graph = knn_graph(features, k=4, weight=weight, normalize=False)
    pairs = [(4, 0), (4, 2), (2, 4), (0, 4)]
    assert [tuple(pair) for pair in graph.edge_index.T.tolist()] == pairs
    similar = [0.6, 0.8, 0.8, 0.6] if weight == "similarity" else [1.0] * 4
    torch.testing.assert_close(graph.edge_weight, torch.tensor(similar))


@each_weight
def test_a_graph_may_have_no_edges(weight: str) -> None:
    graph = knn_graph(torch.tensor([[1.0], [-1.0]]), k=1, weight=weight)
    assert graph.edge_index.shape == (2, 0)
    assert graph.edge_weight.shape == (0,)
    assert graph.num_nodes == 2


def test_gradient_flows_to_the_features_by_similarity_only() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert not knn_graph(x, 2).edge_weight.requires_grad

    def weights(x: Tensor) -> Tensor:
        return knn_graph(x, 2, weight="similarity").edge_weight

    assert torch.autograd.gradcheck(weights, x)


@each_weight
def test_half_precision_adds_degrees_in_float32(weight: str) -> None:
    features = torch.randn(900, 6).bfloat16()
    got = knn_graph(features, 300, weight=weight)
    wanted = knn_graph(features.float(), 300, weight=weight)
    assert got.edge_weight.dtype == torch.bfloat16
    torch.testing.assert_close(got.edge_weight.float(), wanted.edge_weight, rtol=0.02, atol=1e-6)


@each_weight
def test_one_graph_a_modality(weight: str) -> None:
    features = {"text": torch.randn(7, 3), "image": torch.randn(7, 5)}
    present = {"image": torch.arange(7) != 2}
    graphs = knn_graphs(features, 2, present=present, weight=weight, normalize=False, block_size=3)
    assert graphs["item"].num_nodes == 7
    assert graphs.edge_types == [("item", "text", "item"), ("item", "image", "item")]
    for name, rows in features.items():
        alone = knn_graph(
            rows, 2, present=present.get(name), weight=weight, normalize=False, block_size=3
        )
        assert_same(graphs["item", name, "item"].edge_index, alone.edge_index)
        assert_same(graphs["item", name, "item"].edge_weight, alone.edge_weight)
    assert graphs.validate()


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_bad_inputs() -> None:
    x = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"weight to be one of 'binary', 'similarity', got 'no'\."):
        knn_graph(x, 1, weight="no")
    with pytest.raises(ValueError, match=r"Expected k < V = 4, got 4\."):
        knn_graph(x, 4)
    with pytest.raises(ValueError, match=r"Expected features of one modality at least, got none"):
        knn_graphs({}, 1)
    with pytest.raises(ValueError, match=r"as many 'image' as 'text' items, 4, got 3\."):
        knn_graphs({"text": x, "image": x[:3]}, 1)
    with pytest.raises(ValueError, match=r"modality to be one of 'text', got 'image'\."):
        knn_graphs({"text": x}, 1, present={"image": x[:, 0] > 0})
    with pytest.raises(ValueError, match=r"Expected features as a tensor, got dict\."):
        knn_graph({"text": x}, 1)
    with pytest.raises(ValueError, match=r"features by modality, as a dict of tensors, got Tensor"):
        knn_graphs(x, 1)
    with pytest.raises(ValueError, match=r"present by modality, as a dict of tensors, got Tensor"):
        knn_graphs({"text": x}, 1, present=x[:, 0] > 0)
