"""Tests for mmfuse.fusion.weighted."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.func import functional_call

from mmfuse import CategoryGuidedGate, SoftmaxGate, WeightedFusion
from mmfuse.testing import assert_block_contract
from mmfuse.types import GateOutput
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import streams, with_nan

few = settings(max_examples=25)


def fusion_of(x: Tensor) -> WeightedFusion:
    return drawn(WeightedFusion(SoftmaxGate(x.shape[-1])))


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_weights(x: list[list[float]], present: list[bool], question: list[float]) -> list[float]:
    """Softmax of the dot products with the question over what is present."""
    scores = [sum(a * b for a, b in zip(vector, question, strict=True)) for vector in x]
    shares = [math.exp(s) if there else 0.0 for s, there in zip(scores, present, strict=True)]
    return [share / sum(shares) if sum(shares) else 0.0 for share in shares]


@given(streams())
@few
def test_matches_naive(case):
    fusion = fusion_of(case.x)
    fused, weights, losses = fusion(case.x, case.present)
    assert losses == {}
    question = fusion.gate.query.tolist()
    for place in places(case.present.shape[:-1]):
        rows = case.x[place].tolist()
        wanted = naive_weights(rows, case.present[place].tolist(), question)
        total = [
            sum(w * value for w, value in zip(wanted, values, strict=True))
            for values in zip(*rows, strict=True)
        ]
        torch.testing.assert_close(weights[place], torch.tensor(wanted, dtype=weights.dtype))
        torch.testing.assert_close(fused[place], torch.tensor(total, dtype=fused.dtype))


# -- properties -----------------------------------------------------------------------------------


@given(streams())
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    fusion = fusion_of(case.x)
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@given(streams())
@few
def test_dropping_an_absent_modality_equals_masking_it(case):
    fusion = fusion_of(case.x)
    x = torch.cat([case.x, torch.randn_like(case.x[..., :1, :])], -2)
    present = torch.cat([case.present, torch.zeros_like(case.present[..., :1])], -1)
    masked = fusion(x, present)
    torch.testing.assert_close(masked.fused, fusion(case.x, case.present).fused)
    assert (masked.weights[..., -1] == 0).all()


@given(streams())
@few
def test_order_of_the_modalities_changes_nothing(case):
    fusion, order = fusion_of(case.x), torch.randperm(case.x.shape[-2])
    turned = fusion(case.x[..., order, :], case.present[..., order])
    straight = fusion(case.x, case.present)
    torch.testing.assert_close(turned.fused, straight.fused)
    torch.testing.assert_close(turned.weights, straight.weights[..., order])


def test_single_modality_passes_unchanged():
    x = torch.randn(4, 1, 3)
    assert_same(WeightedFusion(SoftmaxGate(3))(x).fused, x[:, 0])


def test_nothing_present_gives_zero():
    fusion = WeightedFusion(SoftmaxGate(3))
    fused = fusion(torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)).fused
    assert (fused == 0).all()


def test_context_reaches_the_gate_and_its_loss_comes_back():
    gate, x = CategoryGuidedGate(3, 2, 5), torch.randn(4, 2, 3)
    present = torch.tensor([True, False]).expand(4, 2)
    categories = torch.tensor([0, 4, -100, 2])
    fused, weights, losses = WeightedFusion(gate)(x, present, categories)
    wanted = gate(x, present, categories)
    assert_same((weights, losses), (wanted.weights, wanted.losses))
    torch.testing.assert_close(fused, x[:, 0])


def test_any_function_is_a_gate():
    def first(x: Tensor, present: Tensor | None, context: Tensor | None) -> GateOutput:
        return GateOutput(torch.tensor([1.0, 0.0]).expand(x.shape[:-1]), {})

    x = torch.randn(4, 2, 3)
    assert_same(WeightedFusion(first)(x).fused, x[:, 0])


def test_gate_that_weighs_an_absent_modality_lets_nothing_in():
    def blind(x: Tensor, present: Tensor | None, context: Tensor | None) -> GateOutput:
        return GateOutput(torch.ones(x.shape[:-1]), {})

    x, present = torch.randn(4, 2, 3), torch.tensor([False, True]).expand(4, 2)
    assert_same(WeightedFusion(blind)(with_nan(x, present), present).fused, x[:, 1])


def test_autocast_gives_the_same_weights_up_to_rounding():
    fusion, x = WeightedFusion(SoftmaxGate(3)), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fusion(x, torch.tensor([True, False]).expand(4, 2))
    torch.testing.assert_close(rough.fused.float(), x[:, 0], rtol=0.01, atol=0.01)
    assert (rough.weights == torch.tensor([1.0, 0.0])).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_vector(copied):
    fusion, x = WeightedFusion(SoftmaxGate(3)), torch.randn(4, 2, 3)
    assert_same(copied(fusion)(x), fusion(x))


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    fusion = drawn(WeightedFusion(SoftmaxGate(2)))
    present = torch.tensor([[True, False, True], [False, False, False]])

    def fused(x: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(fusion, {"gate.query": query}, (x, present))[:2]

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused, (x, fusion.gate.query))


def test_contract():
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    assert_block_contract(WeightedFusion(SoftmaxGate(4)), torch.randn(3, 3, 4), present)


# -- errors and repr ------------------------------------------------------------------------------

X = torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("x", "present", "message"),
    [
        (X[..., :3], None, r"Expected x of shape \(\.\.\., M, 4\), got \(3, 2, 3\)\."),
        (X, X[..., 0], r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, X[0, :, 0] > 0, r"Expected present of shape \(3, 2\), got \(2,\)\."),
    ],
)
def test_rejects_what_its_gate_rejects(x, present, message):
    with pytest.raises(ValueError, match=message):
        WeightedFusion(SoftmaxGate(4))(x, present)


def test_repr():
    wanted = "WeightedFusion(\n  (gate): SoftmaxGate(dim=4, temperature=1.0)\n)"
    assert repr(WeightedFusion(SoftmaxGate(4))) == wanted
