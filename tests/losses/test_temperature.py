"""Tests for mmfuse.losses.temperature."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import LearnedTemperature
from mmfuse.testing import assert_block_contract


def at(log_temperature: float, **bounds: float | None) -> LearnedTemperature:
    """One whose parameter has gone there."""
    learned = LearnedTemperature(0.1, **bounds).double()
    torch.nn.init.constant_(learned.log_temperature, log_temperature)
    return learned


# -- reference: the formula, read aloud -----------------------------------------------------------


@given(st.floats(-8, 8))
def test_is_the_power_of_the_parameter_within_the_bounds(log_temperature):
    found = at(log_temperature, minimum=0.05, maximum=2.0)()
    assert found.item() == pytest.approx(min(max(math.exp(log_temperature), 0.05), 2.0))


@pytest.mark.parametrize("temperature", [0.01, 0.07, 3.0])
def test_starts_where_it_is_told(temperature):
    assert LearnedTemperature(temperature)().item() == pytest.approx(temperature)


# -- properties ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_temperature", "sign", "moves"),
    [
        (math.log(0.001), 1, False),  # a step would make it colder still
        (math.log(0.001), -1, True),
        (math.log(0.1), 1, True),
        (math.log(0.1), -1, True),
        (math.log(10), 1, True),
        (math.log(10), -1, False),  # or hotter still
    ],
)
def test_gradient_beyond_a_bound_leads_back_or_nowhere(log_temperature, sign, moves):
    learned = at(log_temperature, minimum=0.01, maximum=1.0)
    (sign * learned()).backward()
    gradient = learned.log_temperature.grad
    assert gradient == (sign * learned().detach() if moves else 0)


def test_a_step_too_far_is_undone():
    learned = at(0.0, minimum=0.01, maximum=1.0)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
    for goal in (1e-6, 0.5):  # colder than allowed, then back again
        for _ in range(200):
            optimizer.zero_grad()
            (learned().log() - math.log(goal)).square().mul(0.2).backward()
            optimizer.step()
        assert learned().item() == pytest.approx(max(goal, 0.01))


def test_without_a_maximum_nothing_is_too_hot():
    assert at(5.0)().item() == pytest.approx(math.exp(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_in_float32(dtype):
    learned = LearnedTemperature(0.07, dtype=dtype)
    assert learned().dtype == torch.float32
    assert learned() == learned.log_temperature.float().exp()
    learned().backward()
    assert learned.log_temperature.grad.dtype == dtype


def test_reset_starts_again():
    learned = LearnedTemperature(0.2)
    torch.nn.init.zeros_(learned.log_temperature)
    learned.reset_parameters()
    assert learned().item() == pytest.approx(0.2)


def test_copy_is_its_own():
    learned = LearnedTemperature(0.2)
    other = copy.deepcopy(learned)
    torch.nn.init.zeros_(other.log_temperature)
    assert learned().item() == pytest.approx(0.2)
    assert other().item() == 1


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    learned = at(math.log(0.3), maximum=1.0)

    def temperature(parameter: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(learned, {"log_temperature": parameter}, ())

    parameter = learned.log_temperature.detach().requires_grad_()
    assert torch.autograd.gradcheck(temperature, parameter)
    assert torch.autograd.gradgradcheck(temperature, parameter)


@pytest.mark.parametrize("maximum", [None, 1.0])
def test_contract(maximum):
    assert_block_contract(LearnedTemperature(maximum=maximum))


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ({"minimum": 0.0}, r"Expected minimum > 0, got 0\.0\."),
        ({"temperature": 0.001}, r"Expected temperature >= minimum = 0\.01, got 0\.001\."),
        ({"maximum": 0.05}, r"Expected temperature <= maximum = 0\.05, got 0\.07\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        LearnedTemperature(**options)


def test_repr():
    assert repr(LearnedTemperature()) == "LearnedTemperature(0.07, minimum=0.01, maximum=None)"


def test_forward_mode_is_refused_where_it_would_be_wrong():
    """A registered operator leaves a tangent out in silence."""

    def temperature(logarithm: Tensor) -> Tensor:
        return torch.func.functional_call(LearnedTemperature(), {"log_temperature": logarithm}, ())

    with pytest.raises(NotImplementedError, match="A temperature with bounds has no forward-mode"):
        torch.func.jacfwd(temperature)(torch.tensor(-1.0))
