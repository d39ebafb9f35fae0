"""Tests for mmfuse.fusion.gated."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.func import functional_call

from mmfuse import GatedFusion
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, outcome, places
from tests.references import naive_linear
from tests.strategies import streams, with_nan

few = settings(max_examples=25)


def fusion_of(x: Tensor) -> GatedFusion:
    return drawn(GatedFusion(x.shape[-1], x.shape[-2]))


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_gmu(
    fusion: GatedFusion, x: list[list[float]], present: list[bool]
) -> tuple[list[float], list[float]]:
    """Each present modality adds its gated tanh; every gate reads all of them, absent ones as 0."""
    seen = [v if there else [0.0] * len(v) for v, there in zip(x, present, strict=True)]
    together = [value for vector in seen for value in vector]
    fused, weights = [0.0] * fusion.dim, []
    for m, vector in enumerate(seen):
        hidden = [math.tanh(h) for h in naive_linear(fusion.weight[m].tolist(), vector)]
        scores = naive_linear(fusion.gate_weight[m].tolist(), together)
        gate = [1 / (1 + math.exp(-s)) if present[m] else 0.0 for s in scores]
        fused = [y + z * h for y, z, h in zip(fused, gate, hidden, strict=True)]
        weights.append(sum(gate) / len(gate))
    return fused, weights


@given(streams())
@few
def test_matches_naive(case):
    fusion = fusion_of(case.x)
    fused, weights, losses = fusion(case.x, case.present)
    assert losses == {}
    for place in places(case.present.shape[:-1]):
        y, w = naive_gmu(fusion, case.x[place].tolist(), case.present[place].tolist())
        torch.testing.assert_close(fused[place], torch.tensor(y, dtype=fused.dtype))
        torch.testing.assert_close(weights[place], torch.tensor(w, dtype=weights.dtype))


# -- properties -----------------------------------------------------------------------------------


@given(streams())
@few
def test_nan_of_an_absent_modality_reaches_nothing(case):
    fusion = fusion_of(case.x)
    dirty = outcome(fusion, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(fusion, case.x, case.present))


@given(streams())
@few
def test_dropping_the_first_modality_equals_masking_it(case):
    dim, num_modalities = case.x.shape[-1], case.x.shape[-2] + 1
    more = drawn(GatedFusion(dim, num_modalities))
    less = GatedFusion(dim, num_modalities - 1).double()
    less.weight.data = more.weight[1:].detach()
    less.gate_weight.data = more.gate_weight[1:, :, dim:].detach()
    x = torch.cat([torch.randn_like(case.x[..., :1, :]), case.x], -2)
    present = torch.cat([torch.zeros_like(case.present[..., :1]), case.present], -1)
    masked, dropped = more(x, present), less(case.x, case.present)
    torch.testing.assert_close(masked.fused, dropped.fused)
    torch.testing.assert_close(masked.weights[..., 1:], dropped.weights)


@given(streams(scale=1e4))
@few
def test_no_entry_exceeds_the_number_of_present_modalities(case):
    fused, weights, _ = fusion_of(case.x)(case.x, case.present)
    assert (fused.abs() <= case.present.sum(-1, keepdim=True)).all()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert (weights[~case.present] == 0).all()


def test_nothing_present_gives_zero():
    fused = GatedFusion(3, 2)(torch.randn(4, 2, 3), torch.zeros(4, 2, dtype=torch.bool)).fused
    assert (fused == 0).all()


def test_open_gates_without_gate_weights_are_half_open():
    fusion, x = GatedFusion(3, 2), torch.randn(4, 2, 3)
    torch.nn.init.zeros_(fusion.gate_weight)
    hidden = torch.stack([torch.tanh(x[:, m] @ fusion.weight[m].mT) for m in range(2)])
    torch.testing.assert_close(fusion(x).fused, hidden.sum(0) / 2)


def test_starts_in_the_bounds_of_xavier():
    fusion = GatedFusion(32, 3)
    for weight, fans in ((fusion.weight, 32 + 32), (fusion.gate_weight, 32 + 96)):
        bound = math.sqrt(6 / fans)
        assert 0.95 * bound < weight.abs().max() <= bound


def test_context_is_ignored():
    fusion, x = GatedFusion(3, 2), torch.randn(4, 2, 3)
    assert_same(fusion(x, None, torch.randn(4, 9)).fused, fusion(x).fused)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_vector(copied):
    fusion, x = GatedFusion(3, 2), torch.randn(4, 2, 3)
    assert_same(copied(fusion)(x), fusion(x))


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    fusion = drawn(GatedFusion(2, 3))
    present = torch.tensor([[True, False, True], [False, False, False]])
    weights = dict(fusion.named_parameters())

    def fused(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        state = dict(zip(weights, parameters, strict=True))
        return functional_call(fusion, state, (x, present))[:2]

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused, (x, *weights.values()))


def test_contract():
    present = torch.tensor([[True, False], [False, True], [False, False]])
    assert_block_contract(GatedFusion(4, 2), torch.randn(3, 2, 4), present)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-4, 2), r"Expected dim > 0, got -4\."),
        ((4, 0), r"Expected num_modalities > 0, got 0\."),
    ],
)
def test_rejects_bad_hyperparameters(sizes, message):
    with pytest.raises(ValueError, match=message):
        GatedFusion(*sizes)


X = torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("x", "present", "message"),
    [
        (X[:, :1], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 1, 4\)\."),
        (X[..., :3], None, r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 2, 3\)\."),
        (X, X[..., 0], r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (X, X[:1, :, 0] > 0, r"Expected present of shape \(3, 2\), got \(1, 2\)\."),
    ],
)
def test_rejects_bad_inputs(x, present, message):
    with pytest.raises(ValueError, match=message):
        GatedFusion(4, 2)(x, present)


def test_repr():
    assert repr(GatedFusion(4, 2)) == "GatedFusion(dim=4, num_modalities=2)"
