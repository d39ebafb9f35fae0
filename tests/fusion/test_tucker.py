"""Tests for mmfuse.fusion.tucker."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import TuckerFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams())
def test_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(TuckerFusion(dim, num_modalities, hidden_dim=2))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        hidden = [
            naive_linear(fusion.project.weight[m].tolist(), x[m]) if present[m] else [1.0, 1.0]
            for m in range(num_modalities)
        ]
        inner = [0.0, 0.0]
        for *places, o in itertools.product(range(2), repeat=num_modalities + 1):
            parts = [hidden[m][i] for m, i in enumerate(places)]
            inner[o] += fusion.core[(*places, o)].item() * math.prod(parts)
        fused = naive_linear(fusion.out.weight.tolist(), inner)
        return [y + b for y, b in zip(fused, fusion.out.bias.tolist(), strict=True)]

    assert_each_row(fusion, case, naive)


def test_masking_a_modality_sums_the_core_over_its_axis() -> None:
    more, less = drawn(TuckerFusion(3, 3, hidden_dim=2)), drawn(TuckerFusion(3, 2, hidden_dim=2))
    less.core.data = more.core.detach().sum(1)
    less.project.weight.data = more.project.weight[[0, 2]].detach()
    less.out.load_state_dict(more.out.state_dict())
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


def test_refuses_to_be_huge_and_names_what_is_not() -> None:
    message = (
        r"max_parameters = 33554432 weights, got 64 \*\* \(4 \+ 1\) = 1073741824\. MUTANFusion"
    )
    with pytest.raises(ValueError, match=message):
        TuckerFusion(8, 4, hidden_dim=64)
