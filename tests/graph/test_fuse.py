"""Tests for mmfuse.graph.fuse."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from mmfuse.graph import (
    LearnedGraph,
    WeightedEdges,
    fuse_graphs,
    knn_graph,
    knn_graphs,
    mix_graphs,
    propagate,
)
from tests.outcomes import assert_same
from tests.strategies import seeds

few = settings(max_examples=25)


@st.composite
def several(draw: st.DrawFn) -> Any:
    """Item graphs of one to three modalities, some items absent."""
    items, number = draw(st.integers(2, 12)), draw(st.integers(1, 3))
    torch.manual_seed(draw(seeds))
    chance = draw(st.sampled_from([0.0, 0.6, 1.0]))
    names = ("text", "image", "audio")[:number]
    features = {name: torch.randn(items, 3, dtype=torch.float64) for name in names}
    present = {name: torch.rand(items) < chance for name in names}
    k = min(draw(st.integers(1, 4)), items - 1)
    return knn_graphs(features, k, present=present, weight="similarity")


def entries(graph: Any) -> dict[tuple[int, int], float]:
    """Weights by (target, source); an edge that occurs twice is an error."""
    found: dict[tuple[int, int], float] = {}
    pairs = graph.edge_index.T.tolist()
    for (source, target), weight in zip(pairs, graph.edge_weight.tolist(), strict=True):
        assert (target, source) not in found
        found[target, source] = weight
    assert list(found) == sorted(found)
    return found


def naive_sum(parts: list[tuple[float, Any]]) -> dict[tuple[int, int], float]:
    """Add the edges one by one."""
    total: dict[tuple[int, int], float] = {}
    for share, graph in parts:
        pairs = graph.edge_index.T.tolist()
        for (source, target), weight in zip(pairs, graph.edge_weight.tolist(), strict=True):
            total[target, source] = total.get((target, source), 0.0) + share * weight
    return total


def parts_of(graphs: Any) -> dict[str, Any]:
    return {name: graphs[a, name, b] for a, name, b in graphs.edge_types}


@few
@given(graphs=several())
def test_fixed_weights_match_naive(graphs: Any) -> None:
    parts = parts_of(graphs)
    shares = {name: 0.2 + i for i, name in enumerate(parts)}
    wanted = naive_sum([(shares[name], part) for name, part in parts.items()])
    fused = fuse_graphs(graphs, shares)
    assert entries(fused) == pytest.approx(wanted)
    assert fused.num_nodes == graphs["item"].num_nodes
    equal = naive_sum([(1 / len(parts), part) for part in parts.values()])
    assert entries(fuse_graphs(graphs)) == pytest.approx(equal)


@few
@given(graphs=several())
def test_learned_weights_match_naive(graphs: Any) -> None:
    module = LearnedGraph(graphs)
    torch.nn.init.normal_(module.logits)
    powers = [math.exp(logit) for logit in module.logits.tolist()]
    shares = [power / sum(powers) for power in powers]
    wanted = naive_sum(list(zip(shares, parts_of(graphs).values(), strict=True)))
    assert entries(module()) == pytest.approx(wanted)
    assert entries(module(graphs)) == pytest.approx(wanted)


@few
@given(graphs=several(), other=several(), share=st.floats(0, 1))
def test_a_mixture_matches_naive(graphs: Any, other: Any, share: float) -> None:
    first, second = LearnedGraph(graphs)(), LearnedGraph(other)()
    wanted = naive_sum([(share, first), (1 - share, second)])
    assert entries(mix_graphs(first, second, share)) == pytest.approx(wanted)


def test_modalities_count_alike_at_first() -> None:
    features = {"text": torch.randn(9, 3), "image": torch.randn(9, 3)}
    graphs = knn_graphs(features, 2)
    assert entries(LearnedGraph(graphs)()) == pytest.approx(entries(fuse_graphs(graphs)))


# -- gradients -------------------------------------------------------------------------------------


def test_gradcheck_from_the_raw_features_to_the_mixed_graph() -> None:
    """LATTICE: frozen and learned graphs, both by the same learned weights."""
    features = {name: torch.randn(6, 3, dtype=torch.float64) for name in ("text", "image")}
    module = LearnedGraph(knn_graphs(features, 2, weight="similarity"))

    def mixed(text: Tensor, image: Tensor, logits: Tensor, share: Tensor) -> Tensor:
        learned = knn_graphs({"text": text, "image": image}, 2, weight="similarity")
        frozen = functional_call(module, {"logits": logits})
        new = functional_call(module, {"logits": logits}, (learned,))
        return mix_graphs(frozen, new, share).edge_weight

    inputs = [x.clone().requires_grad_() for x in features.values()]
    logits = torch.randn(2, dtype=torch.float64, requires_grad=True)
    share = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixed, (*inputs, logits, share))


def test_gradcheck_of_given_weights() -> None:
    graphs = knn_graphs({name: torch.randn(5, 2).double() for name in ("text", "image")}, 2)

    def fused(a: Tensor, b: Tensor) -> Tensor:
        return fuse_graphs(graphs, {"text": a, "image": b}).edge_weight

    a, b = torch.rand(2, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(fused, (a, b))


# -- the module ------------------------------------------------------------------------------------


def made(**options: Any) -> LearnedGraph:
    torch.manual_seed(0)
    features = {name: torch.randn(9, 3) for name in ("text", "image")}
    return LearnedGraph(knn_graphs(features, 2, weight="similarity"), **options)


def test_frozen_graphs_stay_as_they_were() -> None:
    x = torch.randn(9, 3, requires_grad=True)
    graphs = knn_graphs({"text": x}, 2, weight="similarity")
    module = LearnedGraph(graphs)
    module().edge_weight.sum().backward()
    assert x.grad is None
    before = module().edge_weight.clone()
    with torch.no_grad():
        graphs["item", "text", "item"].edge_weight.zero_()
    assert_same(module().edge_weight, before)


def test_state_is_what_was_learned() -> None:
    module = made()
    again = made()
    assert set(module.state_dict()) == {"logits"}
    torch.nn.init.normal_(module.logits)
    assert not torch.equal(again().edge_weight, module().edge_weight)
    again.load_state_dict(module.state_dict())
    assert_same(again(), module())
    features = {name: torch.randn(11, 3) for name in ("text", "image")}
    larger = knn_graphs(features, 4)
    other = LearnedGraph(larger)
    other.load_state_dict(module.state_dict())
    assert_same(other(), other(larger))
    assert_same(other.logits, module.logits)
    with pytest.raises(ValueError, match=r"Expected edges of graphs < num_nodes = 9, got 10\."):
        module(larger)
    module.reset_parameters()
    assert_same(module.logits.detach(), torch.zeros(2))


def test_exported_it_gives_the_eager_numbers() -> None:
    class Flow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.learned = made()

        def forward(self, x: Tensor) -> tuple[WeightedEdges, Tensor]:
            graph = self.learned()
            return graph, propagate(x, graph)

    module, x, file = Flow(), torch.randn(9, 4), io.BytesIO()
    torch.export.save(torch.export.export(module, (x,)), file)
    file.seek(0)
    graph, flowed = torch.export.load(file).module()(x)
    assert isinstance(graph, WeightedEdges)
    torch.testing.assert_close((graph, flowed), module(x))


def test_compiles_to_the_same_numbers() -> None:
    module = made()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), module())


def test_device_and_dtype_are_taken() -> None:
    module = made(device="meta", dtype=torch.float64)
    assert module.logits.device.type == module.edge_index.device.type == "meta"
    assert module.logits.dtype == module.weight_by_modality.dtype == torch.float64
    assert module.edge_index.dtype == torch.int64


def test_repr() -> None:
    text = torch.tensor([[1.0], [2.0], [3.0]])
    assert str(LearnedGraph(knn_graphs({"text": text}, 1))) == (
        "LearnedGraph(modalities=('text',), items=3, edges=3)"
    )


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_bad_inputs() -> None:
    from torch_geometric.data import HeteroData  # noqa: PLC0415

    graphs = knn_graphs({"text": torch.rand(4, 2), "image": torch.rand(4, 2)}, 1)
    with pytest.raises(ValueError, match=r"Expected a graph of one modality at least, got none\."):
        fuse_graphs(HeteroData())
    wanted = r"Expected weights of the modalities \['image', 'text'\], got those of \['text'\]\."
    with pytest.raises(ValueError, match=wanted):
        fuse_graphs(graphs, {"text": 1.0})
    only = knn_graphs({"text": torch.rand(4, 2)}, 1)
    with pytest.raises(ValueError, match=r"got those of \['image', 'text'\]\."):
        LearnedGraph(graphs)(only)
    edges = knn_graph(torch.rand(4, 2), 1)
    with pytest.raises(ValueError, match=r"Expected 0 <= share <= 1, got 1\.5\."):
        mix_graphs(edges, edges, 1.5)
    broken = WeightedEdges(edges.edge_index, edges.edge_weight[:2])
    shapes = r"second with edge_index \(2, N\) and edge_weight \(N,\), got \(2, 4\) and \(2,\)\."
    with pytest.raises(ValueError, match=shapes):
        mix_graphs(edges, broken, 0.5)
    del edges.edge_weight
    with pytest.raises(ValueError, match=r"Expected first with .*, got \(2, 4\) and None\."):
        mix_graphs(edges, broken, 0.5)
    kinds = r"Expected graphs as HeteroData, such as knn_graphs makes, got Data\."
    for function in (fuse_graphs, LearnedGraph):
        with pytest.raises(ValueError, match=kinds):
            function(knn_graph(torch.rand(4, 2), 1))
    with pytest.raises(ValueError, match=r"such as knn_graphs makes, got dict\."):
        fuse_graphs({"text": edges})
    with pytest.raises(ValueError, match=r"weights by modality, as a dict, got list\."):
        fuse_graphs(graphs, [0.5, 0.5])
    with pytest.raises(ValueError, match=r"first as one graph, .*, got HeteroData\."):
        mix_graphs(graphs, broken, 0.5)
    graphs["user", "likes", "item"].edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one of 'item to item', got 'user to item'\."):
        LearnedGraph(graphs)


def test_graphs_of_different_catalogues_do_not_mix() -> None:
    small, large = (knn_graph(torch.rand(items, 2), 1) for items in (4, 5))
    with pytest.raises(ValueError, match=r"second over 4 items, as first, got 5\."):
        mix_graphs(small, large, 0.5)
    edges = WeightedEdges(large.edge_index, large.edge_weight)
    with pytest.raises(ValueError, match=r"edges of second < num_nodes = 4, got 4\."):
        mix_graphs(small, edges, 0.5)
    with pytest.raises(ValueError, match=r"edges of first < num_nodes = 4, got 4\."):
        mix_graphs(edges, small, 0.5)
    assert entries(mix_graphs(edges, large, 0.5)) == pytest.approx(entries(large))
