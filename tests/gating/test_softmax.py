"""Tests for mmfuse.gating.softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse import SoftmaxGate
from mmfuse.testing import assert_block_contract
from mmfuse.types import Gate, Streams
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import streams, with_nan

few = settings(max_examples=40)
temperatures = st.sampled_from([0.5, 1.0, 3.0])


def gate_for(x: Tensor, **options: float) -> SoftmaxGate:
    return drawn(SoftmaxGate(x.shape[-1], **options))


# -- reference: the formula, read aloud ------------------------------------------------------------


def naive_weights(gate: SoftmaxGate, x: Tensor, present: Tensor) -> Tensor:
    """Loop over rows and modalities."""
    weights = torch.zeros_like(x[..., 0])
    question = gate.query.tolist()
    for row in places(x.shape[:-2]):
        there = [m for m in range(x.shape[-2]) if present[row][m]]
        score = {
            m: sum(v * u for v, u in zip(question, x[row][m].tolist(), strict=True)) for m in there
        }
        power = {m: math.exp(score[m] / gate.temperature) for m in there}
        for m in there:
            weights[row][m] = power[m] / sum(power.values())
    return weights


@few
@given(streams(), temperatures)
def test_matches_naive(case: Streams, temperature: float) -> None:
    gate = gate_for(case.x, temperature=temperature)
    weights, losses = gate(*case)
    torch.testing.assert_close(weights, naive_weights(gate, *case))
    assert losses == {}


# -- properties ------------------------------------------------------------------------------------


@few
@given(streams(scale=1e4))
def test_weights_are_a_distribution_over_what_is_present(case: Streams) -> None:
    weights = gate_for(case.x)(*case).weights
    torch.testing.assert_close(weights.sum(-1), case.present.any(-1).double())
    assert (weights[~case.present] == 0).all()


@few
@given(streams())
def test_dropping_is_masking(case: Streams) -> None:
    gate = gate_for(case.x)
    weights = gate(*case).weights
    for row in places(case.x.shape[:-2]):
        there = case.present[row]
        torch.testing.assert_close(weights[row][there], gate(case.x[row][there]).weights)


@few
@given(streams())
def test_permuting_modalities_permutes_weights(case: Streams) -> None:
    gate, order = gate_for(case.x), torch.randperm(case.x.shape[-2])
    permuted = gate(case.x[..., order, :], case.present[..., order]).weights
    torch.testing.assert_close(permuted, gate(*case).weights[..., order])


@few
@given(streams())
def test_nan_where_absent_changes_nothing(case: Streams) -> None:
    x, present = case
    gate = gate_for(x)
    assert_same(outcome(gate, with_nan(x, present), present), outcome(gate, x, present))


@few
@given(streams())
def test_none_means_all_present_and_context_is_ignored(case: Streams) -> None:
    gate = gate_for(case.x)
    every = gate(case.x, torch.ones_like(case.present), torch.zeros(1)).weights
    torch.testing.assert_close(gate(case.x).weights, every)


def test_high_temperature_tends_to_equal_weights() -> None:
    weights = SoftmaxGate(3, temperature=1e8)(torch.randn(5, 4, 3)).weights
    torch.testing.assert_close(weights, torch.full((5, 4), 0.25))


def test_a_single_modality_takes_everything() -> None:
    assert_same(SoftmaxGate(3)(torch.randn(5, 1, 3)).weights, torch.ones(5, 1))


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 2, 3)
    assert_same(SoftmaxGate(3)(x, torch.ones(0, 2, dtype=torch.bool)).weights, x[..., 0])


def test_bfloat16_stays_bfloat16() -> None:
    gate, x, present = SoftmaxGate(3), torch.randn(5, 4, 3), torch.rand(5, 4) < 0.6
    wanted = gate(x, present).weights.bfloat16()
    weights = gate.bfloat16()(x.bfloat16(), present).weights
    torch.testing.assert_close(weights, wanted, rtol=0.05, atol=0.01)


def test_is_a_gate() -> None:
    assert isinstance(SoftmaxGate(3), Gate)


# -- gradients and contract ------------------------------------------------------------------------

MIXED = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])


def test_gradcheck() -> None:
    gate = drawn(SoftmaxGate(2, temperature=0.5))
    x = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: gate(x, MIXED).weights, (x, gate.query))


@pytest.mark.parametrize("present", [None, MIXED])
def test_contract(present: Tensor | None) -> None:
    x = torch.randn(3, 3, 4)
    x = x if present is None else with_nan(x, present)
    assert_block_contract(SoftmaxGate(4, temperature=0.5), x, present)


def test_parameters_have_the_wanted_dtype_and_device() -> None:
    block = SoftmaxGate(2, dtype=torch.float64, device="meta")
    assert {(p.dtype, p.is_meta) for p in block.parameters()} == {(torch.float64, True)}


# -- errors and repr -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, r"Expected dim > 0, got 0\."),
        ({"dim": 2, "temperature": -1.0}, r"Expected temperature > 0, got -1\.0\."),
    ],
)
def test_rejects_bad_hyperparameters(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxGate(**arguments)


def test_rejects_another_width() -> None:
    message = r"Expected x of shape \(\.\.\., M, 4\), got \(2, 3\)\."
    with pytest.raises(ValueError, match=message):
        SoftmaxGate(4)(torch.zeros(2, 3))


def test_rejects_a_mask_that_does_not_fit() -> None:
    gate, x = SoftmaxGate(4), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"present of shape \(2, 3\), got \(3, 2\)\."):
        gate(x, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"present of dtype torch\.bool, got torch\.float32\."):
        gate(x, torch.ones(2, 3))


def test_repr() -> None:
    assert str(SoftmaxGate(4, temperature=0.5)) == "SoftmaxGate(dim=4, temperature=0.5)"


def test_autocast_does_not_touch_the_gate():
    gate, x = SoftmaxGate(64), 10 * torch.randn(20, 3, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = gate(x).weights
    assert torch.equal(weights, gate(x).weights)
