"""Tests for mmfuse.fusion.product_of_experts."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from mmfuse.fusion import ProductOfExpertsFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(ProductOfExpertsFusion(dim, num_modalities))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        precision, total = [1.0] * dim, [0.0] * dim
        for m, vector in enumerate(x):
            if not present[m]:
                continue
            said = naive_linear(fusion.experts.weight[m].tolist(), vector)
            said = [a + b for a, b in zip(said, fusion.experts.bias[m].tolist(), strict=True)]
            for d in range(dim):
                sure = math.exp(said[dim + d])
                precision[d] += sure
                total[d] += sure * said[d]
        return [t / p for t, p in zip(total, precision, strict=True)]

    assert_each_row(fusion, case, naive)


def test_dropping_a_modality_equals_masking_it() -> None:
    more, less = drawn(ProductOfExpertsFusion(3, 3)), ProductOfExpertsFusion(3, 2).double()
    less.experts.weight.data = more.experts.weight[[0, 2]].detach()
    less.experts.bias.data = more.experts.bias[[0, 2]].detach()
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    masked, dropped = more(x, present), less(x[:, [0, 2]])
    torch.testing.assert_close(masked.fused, dropped.fused)
    torch.testing.assert_close(masked.weights[:, [0, 2]], dropped.weights)


def test_a_sure_expert_has_its_way_and_nothing_overflows() -> None:
    fusion = ProductOfExpertsFusion(2, 2)
    torch.nn.init.zeros_(fusion.experts.weight)
    with torch.no_grad():
        fusion.experts.bias.copy_(torch.tensor([[5.0, 7.0, 1e4, 1e4], [-3.0, -3.0, -1e4, -1e4]]))
    fused, weights, _ = fusion(torch.randn(4, 2, 2))
    torch.testing.assert_close(fused, torch.tensor([5.0, 7.0]).expand(4, 2))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0]).expand(4, 2))
