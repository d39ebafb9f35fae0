"""Tests for mmfuse.fusion.mlp."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import MLPFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


def gelu(value: float) -> float:
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    fusion = drawn(MLPFusion(case.x.shape[-1], case.x.shape[-2], hidden_dim=3))
    first, second = (
        (layer.weight.tolist(), layer.bias.tolist()) for layer in (fusion.hidden, fusion.out)
    )

    def layer(parts: tuple[list[list[float]], list[float]], vector: list[float]) -> list[float]:
        return [y + b for y, b in zip(naive_linear(parts[0], vector), parts[1], strict=True)]

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        together = [v * there for row, there in zip(x, present, strict=True) for v in row]
        return layer(second, [gelu(h) for h in layer(first, together)])

    assert_each_row(fusion, case, naive)


def test_the_hidden_layer_is_as_wide_as_all_modalities_unless_told_otherwise() -> None:
    assert MLPFusion(4, 3).hidden.out_features == 12


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = MLPFusion(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_what_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 1\.5\."):
        MLPFusion(4, 2, dropout=1.5)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        MLPFusion(4, 2, hidden_dim=0)
