"""Tests for mmfuse.fusion.bottleneck."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import BottleneckFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, assert_same, drawn
from tests.references import naive_layer, norm, plus, seen_by
from tests.strategies import leads, streams

few = settings(max_examples=12)
Rows = list[list[float]]


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (3, 2)])
@few
@given(case=streams(lead=leads(1), dim=st.sampled_from([4, 6])), num_bottlenecks=st.integers(1, 3))
def test_matches_naive(
    num_layers: int, num_heads: int, case: Streams, num_bottlenecks: int
) -> None:
    """Only what is present has layers and tokens."""
    num_modalities, dim = case.x.shape[-2:]
    fusion = BottleneckFusion(
        dim,
        num_modalities,
        num_bottlenecks=num_bottlenecks,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=3,
    )
    drawn(fusion).eval()
    everybody = range(1 + num_bottlenecks)
    visible = seen_by(everybody, everybody, causal=False)

    def naive(x: Rows, present: list[bool]) -> list[float]:
        there = [m for m, p in enumerate(present) if p]
        tokens = {m: x[m] for m in there}
        shared = fusion.bottlenecks.tolist()
        for row in fusion.layers:
            told = []
            for m in there:
                tokens[m], *mine = naive_layer(row[m], [tokens[m], *shared], visible)
                told.append(mine)
            shared = [mean(list(one), dim) for one in zip(*told, strict=True)]
        return mean([norm(fusion.norms[m], tokens[m]) for m in there], dim)

    assert_each_row(fusion, case, naive)


def mean(rows: Rows, dim: int) -> list[float]:
    return [total / len(rows) for total in plus(*rows)] if rows else [0.0] * dim


def alone(fusion: BottleneckFusion, x: torch.Tensor) -> torch.Tensor:
    """The mean over modalities of what is made of one when the others are absent."""
    masks = torch.eye(fusion.num_modalities, dtype=torch.bool)
    return torch.stack([fusion(x, mask.expand(x.shape[:-1])).fused for mask in masks]).mean(0)


def test_with_one_layer_modalities_know_nothing_of_each_other() -> None:
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    fusion = drawn(BottleneckFusion(4, 3, num_layers=1)).eval()
    torch.testing.assert_close(fusion(x).fused, alone(fusion, x))
    fusion = drawn(BottleneckFusion(4, 3, num_layers=2)).eval()
    assert not torch.allclose(fusion(x).fused, alone(fusion, x))


def test_modalities_talk_through_the_bottleneck_only() -> None:
    """Where a first layer writes nothing, a second one finds the tokens that were learned."""
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    fusion = drawn(BottleneckFusion(4, 3, num_layers=2)).eval()
    for layer in fusion.layers[0]:
        for parameter in (*layer.attention.out.parameters(), *layer.out.parameters()):
            torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(fusion(x).fused, alone(fusion, x))


def test_dropping_a_modality_equals_masking_it() -> None:
    more = drawn(BottleneckFusion(4, 3, num_layers=3)).eval()
    less = drawn(BottleneckFusion(4, 2, num_layers=3)).eval()
    less.bottlenecks, kept = more.bottlenecks, [0, 2]
    less.norms = torch.nn.ModuleList(more.norms[m] for m in kept)
    less.layers = torch.nn.ModuleList(
        torch.nn.ModuleList(row[m] for m in kept) for row in more.layers
    )
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(5, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, kept]).fused)


def test_nothing_present_gives_zero() -> None:
    fusion, x = drawn(BottleneckFusion(4, 3)).eval(), torch.randn(5, 3, 4, dtype=torch.float64)
    assert_same(fusion(x, torch.zeros(5, 3, dtype=torch.bool)).fused, torch.zeros(5, 4).double())


def test_rows_know_nothing_of_each_other() -> None:
    """Attention runs over the tokens of a row, even where time is as long."""
    fusion, x = BottleneckFusion(4, 3).eval(), torch.randn(2, 3, 3, 4)
    other = x.clone()
    other[:, 1:] = 0
    torch.testing.assert_close(fusion(other).fused[:, 0], fusion(x).fused[:, 0])


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = BottleneckFusion(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        BottleneckFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        BottleneckFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected num_bottlenecks > 0, got 0\."):
        BottleneckFusion(4, 2, num_bottlenecks=0)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        BottleneckFusion(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        BottleneckFusion(4, 2, dropout=2)
