"""Tests for mmfuse.fusion.graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from mmfuse.fusion import AttentionPoolingFusion, GraphFusion
from mmfuse.testing import assert_block_contract
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, assert_same, drawn, outcome, places
from tests.references import naive_linear, plus
from tests.strategies import streams, with_nan

few = settings(max_examples=20)
Vector = Sequence[float]


def naive_read(
    layer: Any, target: Vector, sources: dict[int, list[float]], slope: float
) -> tuple[list[float], list[dict[int, float]]]:
    """What one node reads of others, and the weights of each head."""
    read, every = [], []
    width = layer.out_channels
    for h, direction in enumerate(layer.att[0].tolist()):
        own = slice(h * width, (h + 1) * width)
        mine = naive_linear(layer.lin_r.weight[own].tolist(), target)
        theirs = {m: naive_linear(layer.lin_l.weight[own].tolist(), s) for m, s in sources.items()}
        scores = {}
        for m, value in theirs.items():
            sums = plus(mine, value)
            bent = [v if v > 0 else slope * v for v in sums]
            scores[m] = math.exp(sum(a * b for a, b in zip(direction, bent, strict=True)))
        weights = {m: score / sum(scores.values()) for m, score in scores.items()}
        read += [sum(w * theirs[m][d] for m, w in weights.items()) for d in range(width)]
        every.append(weights)
    return read, every


def naive_graph(
    fusion: GraphFusion, x: list[list[float]], present: list[bool]
) -> tuple[list[float], list[dict[int, float]]]:
    """The fused vector, and the fusion node's weights of each head."""
    there = [m for m, seen in enumerate(present) if seen]
    nodes = {m: plus(x[m], fusion.kind[m].tolist()) for m in there}
    *inner, last = fusion.layers
    for layer in inner:
        told = {m: naive_read(layer, nodes[m], nodes, fusion.negative_slope)[0] for m in there}
        nodes = {m: plus(nodes[m], told[m]) for m in there}
    return naive_read(last, fusion.query.tolist(), nodes, fusion.negative_slope)


def even(case: Streams) -> Streams:
    """As wide as two heads need."""
    return Streams(torch.cat([case.x, case.x.flip(-2)], -1), case.present)


@pytest.mark.parametrize(("num_heads", "num_layers"), [(1, 1), (2, 1), (1, 3), (2, 2)])
@few
@given(case=streams())
def test_matches_naive(num_heads: int, num_layers: int, case: Streams) -> None:
    case = even(case)
    fusion = drawn(
        GraphFusion(case.x.shape[-1], case.x.shape[-2], num_heads=num_heads, num_layers=num_layers)
    )
    assert_each_row(fusion, case, lambda x, present: naive_graph(fusion, x, present)[0])
    weights = fusion(case.x, case.present).weights
    for place in places(case.present.shape[:-1]):
        heads = naive_graph(fusion, case.x[place].tolist(), case.present[place].tolist())[1]
        for m, got in enumerate(weights[place].tolist()):
            wanted = sum(head.get(m, 0.0) for head in heads) / num_heads
            assert got == pytest.approx(wanted, abs=1e-9)


@few
@given(case=streams())
def test_with_linear_scores_it_is_attention_pooling(case: Streams) -> None:
    dim, number = case.x.shape[-1], case.x.shape[-2]
    graph = drawn(GraphFusion(dim, number, negative_slope=1.0))
    pooling = drawn(AttentionPoolingFusion(dim, number))
    (layer,) = graph.layers
    with torch.no_grad():
        graph.kind.zero_()
        pooling.query.copy_(layer.att[0] * dim**0.5)
        pooling.key.weight.copy_(layer.lin_l.weight)
        pooling.value.weight.copy_(layer.lin_l.weight)
        pooling.out.weight.copy_(torch.eye(dim))
    got, wanted = graph(case.x, case.present), pooling(case.x, case.present)
    torch.testing.assert_close(got, wanted)


# -- absent modalities, in several layers ----------------------------------------------------------


@few
@given(case=streams())
def test_nan_of_an_absent_modality_reaches_nothing(case: Streams) -> None:
    fusion = drawn(GraphFusion(case.x.shape[-1], case.x.shape[-2], num_layers=3))
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@few
@given(case=streams())
def test_nothing_present_gives_zero(case: Streams) -> None:
    fusion = drawn(GraphFusion(case.x.shape[-1], case.x.shape[-2], num_layers=2))
    fused, weights, losses = fusion(case.x, case.present)
    assert not losses
    empty = ~case.present.any(-1)
    assert (fused[empty] == 0).all()
    assert (weights[~case.present] == 0).all()
    torch.testing.assert_close(weights.sum(-1), (~empty).double())


@pytest.mark.parametrize("num_layers", [1, 3])
def test_dropping_a_modality_equals_masking_it(num_layers: int) -> None:
    more = drawn(GraphFusion(4, 3, num_layers=num_layers))
    less = GraphFusion(4, 2, num_layers=num_layers).double()
    state = more.state_dict()
    less.load_state_dict({**state, "kind": state["kind"][[0, 2]]})
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(5, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


def test_rows_do_not_mix() -> None:
    fusion = GraphFusion(4, 3, num_layers=3)
    x = torch.randn(2, 3, 3, 4)
    other = x.clone()
    other[:, 1:] = 0  # later moments change nothing at the first
    torch.testing.assert_close(fusion(other).fused[:, 0], fusion(x).fused[:, 0])


def test_several_layers_hear_of_the_other_modalities() -> None:
    """A neighbour changes what a modality says of itself, not only how much it counts."""
    fusion = drawn(GraphFusion(4, 2, num_layers=2))
    nn.init.zeros_(fusion.layers[-1].att)  # the fusion node takes the plain mean
    x = torch.randn(4, dtype=torch.float64)

    def fused(other: Tensor) -> Tensor:
        return fusion(torch.stack([x, other])).fused

    a, b = torch.randn(2, 4, dtype=torch.float64)
    mean_alone = drawn(GraphFusion(4, 2))
    assert not torch.allclose(fused(a) - fused(b), mean_alone.layers[0].lin_l(a - b) / 2)
    torch.testing.assert_close(fusion(torch.stack([x, a])).weights, torch.full((2,), 0.5).double())


# -- contract --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_contract_with_heads_and_layers(masked: bool) -> None:
    fusion = GraphFusion(4, 3, num_heads=2, num_layers=3)
    present = torch.rand(2, 6, 3) < 0.7 if masked else None
    assert_block_contract(fusion, torch.randn(2, 6, 3, 4), present)


@pytest.mark.parametrize("masked", [False, True])
def test_exported_and_batched_by_vmap_with_layers(masked: bool) -> None:
    fusion = GraphFusion(4, 3, num_layers=2)
    x, present = torch.randn(5, 3, 4), torch.rand(5, 3) < 0.6
    inputs = (x, present) if masked else (x,)
    rows = {0: torch.export.Dim("rows")}
    shapes = (rows, rows if masked else None, None)[: len(inputs)]
    program = torch.export.export(fusion, inputs, dynamic_shapes=shapes).module()
    more = tuple(torch.cat([part, part]) for part in inputs)
    torch.testing.assert_close(program(*more), fusion(*more))
    batched = torch.vmap(lambda *parts: fusion(*parts).fused)(*inputs)
    torch.testing.assert_close(batched, fusion(*inputs).fused)


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, r"Expected dim divisible by num_heads = 3, got 4\."),
        ({"num_heads": 0}, r"Expected num_heads > 0, got 0\."),
        ({"num_layers": 0}, r"Expected num_layers > 0, got 0\."),
    ],
)
def test_rejects_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphFusion(4, 2, **options)


def test_repr() -> None:
    wanted = "dim=4, num_modalities=2, num_heads=2, num_layers=3, negative_slope=0.1"
    assert wanted in str(GraphFusion(4, 2, num_heads=2, num_layers=3, negative_slope=0.1))
