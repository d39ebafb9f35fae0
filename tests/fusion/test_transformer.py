"""Tests for mmfuse.fusion.transformer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import TransformerFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)
Vector = list[float]


def plus(first: Vector, second: Vector) -> Vector:
    return [a + b for a, b in zip(first, second, strict=True)]


def linear(layer: torch.nn.Linear, vector: Vector) -> Vector:
    return plus(naive_linear(layer.weight.tolist(), vector), layer.bias.tolist())


def norm(layer: torch.nn.LayerNorm, vector: Vector) -> Vector:
    mean = sum(vector) / len(vector)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in vector) / len(vector) + layer.eps)
    scaled = zip(((v - mean) / deviation for v in vector), layer.weight.tolist(), strict=True)
    return plus([v * w for v, w in scaled], layer.bias.tolist())


def gelu(value: float) -> float:
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


def attend(query: Vector, keys: list[Vector], values: list[Vector]) -> Vector:
    scores = [math.exp(naive_linear([query], key)[0] / math.sqrt(len(query))) for key in keys]
    shares = [score / sum(scores) for score in scores]
    return [sum(s * v[d] for s, v in zip(shares, values, strict=True)) for d in range(len(query))]


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2)])
@few
@given(case=streams())
def test_matches_naive(num_layers: int, num_heads: int, case: Streams) -> None:
    """Only what is present is a token: nothing is masked here, it is left out."""
    x = torch.cat([case.x, case.x.flip(-2)], -1)  # an even width
    *_, num_modalities, dim = x.shape
    fusion = TransformerFusion(
        dim, num_modalities, num_layers=num_layers, num_heads=num_heads, hidden_dim=3
    )
    fusion, width = drawn(fusion).eval(), dim // num_heads

    def naive(x: list[Vector], present: list[bool]) -> Vector:
        tokens = [fusion.token.tolist()]
        tokens += [plus(x[m], fusion.embedding[m].tolist()) for m, p in enumerate(present) if p]
        for layer in fusion.layers:
            joint = [linear(layer.joint, norm(layer.attention_norm, token)) for token in tokens]
            read: list[Vector] = [[] for _ in tokens]
            for h in range(num_heads):
                starts = [part * dim + h * width for part in range(3)]
                query, key, value = ([row[s : s + width] for row in joint] for s in starts)
                read = [row + attend(q, key, value) for row, q in zip(read, query, strict=True)]
            read = [linear(layer.attention_out, row) for row in read]
            tokens = [plus(a, b) for a, b in zip(tokens, read, strict=True)]
            inner = [linear(layer.hidden, norm(layer.norm, token)) for token in tokens]
            outer = [linear(layer.out, [gelu(v) for v in row]) for row in inner]
            tokens = [plus(a, b) for a, b in zip(tokens, outer, strict=True)]
        return norm(fusion.norm, tokens[0])

    assert_each_row(fusion, Streams(x, case.present), naive)


def test_attention_runs_over_modalities_even_where_time_is_as_long() -> None:
    fusion, x = TransformerFusion(4, 3).eval(), torch.randn(2, 3, 3, 4)
    other = x.clone()
    other[:, 1:] = 0
    torch.testing.assert_close(fusion(other).fused[:, 0], fusion(x).fused[:, 0])


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = TransformerFusion(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        TransformerFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        TransformerFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        TransformerFusion(4, 2, dropout=2)
