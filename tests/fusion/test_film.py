"""Tests for mmfuse.fusion.film."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import FiLMFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, assert_same, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    target = int(torch.randint(num_modalities, ()))
    fusion = drawn(FiLMFusion(dim, num_modalities, target=target))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        modulation, place = [0.0] * (2 * dim), 0
        bias = fusion.modulation.bias.tolist() if num_modalities > 1 else []
        for m in range(num_modalities):
            if m == target:
                continue
            if present[m]:
                said = naive_linear(fusion.modulation.weight[place].tolist(), x[m])
                said = [a + b for a, b in zip(said, bias[place], strict=True)]
                modulation = [a + b for a, b in zip(modulation, said, strict=True)]
            place += 1
        own = x[target] if present[target] else [0.0] * dim
        return [(1 + modulation[d]) * own[d] + modulation[dim + d] for d in range(dim)]

    assert_each_row(fusion, case, naive)


@few
@given(case=streams())
def test_without_modulation_it_is_the_identity(case: Streams) -> None:
    fusion = FiLMFusion(case.x.shape[-1], case.x.shape[-2]).double()
    for parameter in fusion.parameters():
        torch.nn.init.zeros_(parameter)
    assert_same(fusion(case.x).fused, case.x[..., 0, :])


def test_dropping_a_modulating_modality_equals_masking_it() -> None:
    more, less = drawn(FiLMFusion(3, 3)), FiLMFusion(3, 2).double()
    less.modulation.weight.data = more.modulation.weight[1:].detach()
    less.modulation.bias.data = more.modulation.bias[1:].detach()
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


@pytest.mark.parametrize("target", [-1, 2])
def test_rejects_a_target_that_is_not_there(target: int) -> None:
    with pytest.raises(ValueError, match=rf"0 <= target < num_modalities = 2, got {target}\."):
        FiLMFusion(4, 2, target=target)
