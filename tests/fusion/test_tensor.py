"""Tests for mmfuse.fusion.tensor."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import ConcatFusion, TensorFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


@few
@given(case=streams(), hidden=st.sampled_from([None, 2]))
def test_matches_naive(case: Streams, hidden: int | None) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(TensorFusion(dim, num_modalities, hidden_dim=hidden))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        factors = []
        for m, vector in enumerate(x):
            seen = vector if present[m] else [0.0] * dim
            if hidden is not None:
                seen = naive_linear(fusion.project.weight[m].tolist(), seen)
            factors.append([*seen, 1.0])
        products = [math.prod(choice) for choice in itertools.product(*factors)]
        return [
            y + b
            for y, b in zip(
                naive_linear(fusion.weight.tolist(), products), fusion.bias.tolist(), strict=True
            )
        ]

    assert_each_row(fusion, case, naive)


def test_dropping_a_modality_equals_masking_it() -> None:
    more, less = drawn(TensorFusion(2, 3)), TensorFusion(2, 2).double()
    less.weight.data = more.weight.detach().unflatten(1, (3, 3, 3))[:, :, -1].flatten(1)
    less.bias.data = more.bias.detach()
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


def test_without_products_it_is_a_linear_layer() -> None:
    fusion, linear = drawn(TensorFusion(2, 2)), drawn(ConcatFusion(2, 2))
    weight = torch.zeros(2, 3, 3, dtype=torch.float64)
    weight[:, :2, 2] = linear.linear.weight[:, :2].detach()
    weight[:, 2, :2] = linear.linear.weight[:, 2:].detach()
    fusion.weight.data, fusion.bias.data = weight.flatten(1), linear.linear.bias.detach()
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(fusion(x).fused, linear(x).fused)


def test_refuses_to_be_huge_and_names_what_is_not() -> None:
    message = (
        r"max_parameters = 33554432 weights, got 64 \* \(64 \+ 1\) \*\* 4 = 1142440000\. LowRank"
    )
    with pytest.raises(ValueError, match=message):
        TensorFusion(64, 4)
    assert TensorFusion(64, 4, hidden_dim=7).weight.shape == (64, 8**4)
    with pytest.raises(ValueError, match=r"max_parameters = 10 weights, got 2 \* \(2 \+ 1\)"):
        TensorFusion(2, 2, max_parameters=10)
