"""Tests for mmfuse.fusion.reduce."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import MaxFusion, MeanFusion, ProductFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, assert_same
from tests.strategies import streams

few = settings(max_examples=25)
REDUCTIONS: dict[type, Callable[[list[float]], float]] = {
    MeanFusion: lambda values: sum(values) / len(values),
    MaxFusion: max,
    ProductFusion: math.prod,
}
each_kind = pytest.mark.parametrize("kind", REDUCTIONS)


@each_kind
@few
@given(case=streams())
def test_matches_naive(kind: type, case: Streams) -> None:
    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        seen = [vector for vector, there in zip(x, present, strict=True) if there]
        columns = zip(*seen, strict=True)
        return [REDUCTIONS[kind](list(column)) for column in columns] or [0.0] * len(x[0])

    assert_each_row(kind(case.x.shape[-1], case.x.shape[-2]), case, naive)


@each_kind
@few
@given(case=streams())
def test_dropping_a_modality_equals_masking_it(kind: type, case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    x = torch.cat([torch.randn_like(case.x[..., :1, :]), case.x], -2)
    present = torch.cat([torch.zeros_like(case.present[..., :1]), case.present], -1)
    more, less = kind(dim, num_modalities + 1), kind(dim, num_modalities)
    torch.testing.assert_close(more(x, present).fused, less(case.x, case.present).fused)


def test_the_mean_weighs_what_is_present_equally() -> None:
    present = torch.tensor([[True, True], [True, False], [False, False]])
    weights = MeanFusion(4, 2)(torch.randn(3, 2, 4), present).weights
    assert_same(weights, torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]))


def test_only_the_largest_value_learns() -> None:
    x = torch.tensor([[1.0, 5.0], [4.0, 2.0]], requires_grad=True)
    MaxFusion(2, 2)(x).fused.sum().backward()
    assert_same(x.grad, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_a_factor_of_zero_learns_from_the_others() -> None:
    x = torch.tensor([[0.0], [3.0], [2.0]], requires_grad=True)
    ProductFusion(1, 3)(x).fused.sum().backward()
    assert_same(x.grad, torch.tensor([[6.0], [0.0], [0.0]]))
