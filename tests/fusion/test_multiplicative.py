"""Tests for mmfuse.fusion.multiplicative."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings

from mmfuse.fusion import MultiplicativeFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(MultiplicativeFusion(dim, num_modalities))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        seen = [v if there else [0.0] * dim for v, there in zip(x, present, strict=True)]
        linear = naive_linear(fusion.linear.weight.tolist(), [v for row in seen for v in row])
        fused = [a + b for a, b in zip(linear, fusion.linear.bias.tolist(), strict=True)]
        for pair, (m, n) in enumerate(itertools.combinations(range(num_modalities), 2)):
            weight = fusion.pair_weight[pair].tolist()
            for i, j, o in itertools.product(range(dim), repeat=3):
                fused[o] += seen[m][i] * weight[i][j][o] * seen[n][j]
        return fused

    assert_each_row(fusion, case, naive)


def test_dropping_a_modality_equals_masking_it() -> None:
    more, less = drawn(MultiplicativeFusion(3, 3)), MultiplicativeFusion(3, 2).double()
    less.pair_weight.data = more.pair_weight[1:2].detach()  # of the pairs 01, 02, 12
    weight = more.linear.weight.detach().unflatten(1, (3, 3))
    less.linear.weight.data = weight[:, [0, 2]].flatten(1)
    less.linear.bias.data = more.linear.bias.detach()
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


def test_the_pairs_start_as_strong_as_a_layer() -> None:
    fusion, x = MultiplicativeFusion(64, 2), torch.randn(500, 2, 64)
    torch.nn.init.zeros_(fusion.linear.weight)
    torch.nn.init.zeros_(fusion.linear.bias)
    assert 0.9 < fusion(x).fused.std() < 1.1
