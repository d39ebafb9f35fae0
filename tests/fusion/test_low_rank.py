"""Tests for mmfuse.fusion.low_rank."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from mmfuse.fusion import LowRankFusion, TensorFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(LowRankFusion(dim, num_modalities, rank=3))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        fused = fusion.bias.tolist()
        for r, share in enumerate(fusion.rank_weight.tolist()):
            for d in range(dim):
                row, factors = r * dim + d, []
                for m, vector in enumerate(x):
                    seen = vector if present[m] else [0.0] * dim
                    (product,) = naive_linear([fusion.factors.weight[m][row].tolist()], seen)
                    factors.append(product + fusion.factors.bias[m][row].item())
                fused[d] += share * math.prod(factors)
        return fused

    assert_each_row(fusion, case, naive)


@few
@given(case=streams())
def test_it_is_tensor_fusion_with_the_weight_that_its_factors_make(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(LowRankFusion(dim, num_modalities, rank=3))
    tensor = TensorFusion(dim, num_modalities).double()
    parts = torch.cat([fusion.factors.weight, fusion.factors.bias.unsqueeze(-1)], -1).detach()
    parts = parts.unflatten(1, (3, dim))  # (M, R, O, D + 1)
    weight = fusion.rank_weight.detach().view(3, 1, 1).expand(3, dim, 1)
    for part in parts:
        weight = (weight.unsqueeze(-1) * part.unsqueeze(-2)).flatten(-2)
    tensor.weight.data, tensor.bias.data = weight.sum(0), fusion.bias.detach()
    got, wanted = fusion(case.x, case.present).fused, tensor(case.x, case.present).fused
    torch.testing.assert_close(got, wanted)


def test_every_factor_is_trained() -> None:
    """Factors in a Python list would be neither trained nor saved."""
    fusion = LowRankFusion(4, 3, rank=2)
    assert sum(p.numel() for p in fusion.parameters()) == 3 * 2 * 5 * 4 + 2 + 4
    fusion(torch.randn(5, 3, 4)).fused.square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).all() for p in fusion.parameters())


def test_a_fresh_fusion_ignores_an_absent_modality() -> None:
    fusion, x = LowRankFusion(4, 2), torch.randn(3, 2, 4)
    present = torch.tensor([True, False]).expand(3, 2)
    alone = fusion.factors(x)[:, 0].unflatten(-1, (4, 4)).mean(1)
    torch.testing.assert_close(fusion(x, present).fused, alone)
