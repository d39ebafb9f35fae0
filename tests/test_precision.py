"""Tests for mmfuse._precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mmfuse._precision import at_least_float32, unit, without_autocast
from tests.strategies import leads, seeds, sizes


@given(leads(), sizes, seeds)
def test_unit_is_each_vector_over_its_length(lead, dim, seed):
    torch.manual_seed(seed)
    x = torch.randn(*lead, dim, dtype=torch.float64)
    rows = x.reshape(-1, dim).tolist()
    wanted = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]
    torch.testing.assert_close(unit(x), x.new_tensor(wanted).reshape(x.shape))


@pytest.mark.parametrize("length", [1e-29, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_unit_of_any_length_is_the_same(length):
    x = torch.randn(5, 3)
    torch.testing.assert_close(unit(length * x), unit(x))


@pytest.mark.parametrize("length", [1e-20, 1e20])
def test_gradient_of_unit_goes_with_one_over_the_length(length):
    def gradient(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        (unit(leaf) * weight).sum().backward()
        return leaf.grad

    x, weight = torch.randn(2, 5, 3)
    torch.testing.assert_close(gradient(length * x) * length, gradient(x))


def test_zero_stays_zero_with_the_gradient_of_length_one():
    x = torch.tensor([[0.0, 0.0], [1e-31, 0.0]], requires_grad=True)
    found = unit(x)
    found.sum().backward()
    assert torch.equal(found, x)
    assert torch.equal(x.grad, torch.ones(2, 2))


def test_nan_stays_where_it_is():
    assert unit(torch.tensor([[torch.nan, 1.0], [3.0, 4.0]])).isnan().any(-1).tolist() == [1, 0]


def test_no_entries_have_no_length():
    assert unit(torch.empty(3, 0)).shape == (3, 0)


def test_unit_gradcheck():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x)
    assert torch.autograd.gradgradcheck(unit, x)


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [
        ([torch.float16], torch.float32),
        ([torch.bfloat16, torch.float16], torch.float32),
        ([torch.float16, torch.float64], torch.float64),
        ([torch.int64], torch.float32),
        ([], torch.float32),
    ],
)
def test_common_dtype(dtypes, wanted):
    assert at_least_float32(*(torch.ones(1, dtype=dtype) for dtype in dtypes)) == wanted


def test_autocast_is_off_inside():
    x = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16), without_autocast(x.device):
        assert (x @ x).dtype == torch.float32


def test_a_device_without_autocast_is_left_alone():
    with without_autocast(torch.device("meta")):
        assert torch.ones(1, device="meta").is_meta
