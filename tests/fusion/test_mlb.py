"""Tests for mmfuse.fusion.mlb."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from mmfuse.fusion import MLBFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(MLBFusion(dim, num_modalities, hidden_dim=3))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        product = [1.0] * 3
        for m, vector in enumerate(x):
            if present[m]:
                factor = naive_linear(fusion.factors.weight[m].tolist(), vector)
                biased = zip(factor, fusion.factors.bias[m].tolist(), strict=True)
                product = [p * math.tanh(f + b) for p, (f, b) in zip(product, biased, strict=True)]
        fused = naive_linear(fusion.out.weight.tolist(), product)
        return [y + b for y, b in zip(fused, fusion.out.bias.tolist(), strict=True)]

    assert_each_row(fusion, case, naive)


def test_dropping_a_modality_equals_masking_it() -> None:
    more, less = drawn(MLBFusion(3, 3)), drawn(MLBFusion(3, 2))
    less.factors.weight.data = more.factors.weight[[0, 2]].detach()
    less.factors.bias.data = more.factors.bias[[0, 2]].detach()
    less.out.load_state_dict(more.out.state_dict())
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)
