"""Tests for mmfuse.fusion.interactive; test_registry.py has what all fusions promise alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import InteractiveFusion, InteractiveMixture
from mmfuse.testing import assert_block_contract
from mmfuse.types import Enrichment, EnrichmentOutput, Streams
from tests.outcomes import assert_same, drawn, outcome, places
from tests.references import naive_linear, plus
from tests.strategies import sizes, streams, with_nan

few = settings(max_examples=15)
Vector = list[float]


@st.composite
def examples(draw: st.DrawFn) -> tuple[InteractiveFusion, Streams]:
    case = draw(streams())
    num_modalities, dim = case.x.shape[-2:]
    target = draw(st.none() | st.integers(0, num_modalities - 1))
    fusion = InteractiveFusion(dim, num_modalities, num_experts=draw(sizes), target=target)
    return drawn(fusion), case


# -- reference: the formula, read aloud ------------------------------------------------------------


def naive_gate(mixture: InteractiveMixture, m: int, x: Vector) -> Vector:
    scores = naive_linear(mixture.gate.weight[m].tolist(), x)
    powers = [math.exp(score) for score in plus(scores, mixture.gate.bias[m].tolist())]
    return [power / sum(powers) for power in powers]


def naive(
    mixture: InteractiveMixture, x: list[Vector], present: list[bool]
) -> tuple[list[Vector], list[Vector]]:
    """The streams of one row after the experts, and the gates."""
    dim = mixture.dim
    x = [vector if p else [0.0] * dim for vector, p in zip(x, present, strict=True)]
    together = [value for vector in x for value in vector]
    width = len(together)
    weight, bias = mixture.experts.weight.tolist(), mixture.experts.bias.tolist()
    made = []
    for e in range(mixture.num_experts):
        own = slice(e * width, (e + 1) * width)
        made.append(plus(naive_linear(weight[own], together), bias[own]))
    nobody = [0.0] * mixture.num_experts
    gates = [naive_gate(mixture, m, x[m]) if p else nobody for m, p in enumerate(present)]
    enriched = []
    for m, vector in enumerate(x):
        told = [0.0] * dim
        for share, answer in zip(gates[m], made, strict=True):
            told = plus(told, [share * v for v in answer[m * dim : (m + 1) * dim]])
        added = [mixture.amount[m].item() * v for v in told]
        enriched.append(plus(vector, added) if present[m] else [0.0] * dim)
    return enriched, gates


@few
@given(example=examples())
def test_matches_naive(example: tuple[InteractiveFusion, Streams]) -> None:
    fusion, (x, present) = example
    enriched, weights, router, losses = fusion.mixture(x, present)
    fused = fusion(x, present)
    for row in places(present.shape[:-1]):
        wanted, gates = naive(fusion.mixture, x[row].tolist(), present[row].tolist())
        torch.testing.assert_close(enriched[row], x.new_tensor(wanted))
        torch.testing.assert_close(router.expert_weight[row], x.new_tensor(gates))
        torch.testing.assert_close(fused.fused[row], x.new_tensor(wanted).sum(0))
    torch.testing.assert_close(weights, fusion.mixture.amount * present)
    assert fused.weights is None
    assert losses == fused.losses == router.losses == {}


# -- the enrichment --------------------------------------------------------------------------------


def test_the_enrichment_is_one() -> None:
    mixture = InteractiveMixture(4, 3)
    assert isinstance(mixture, Enrichment)
    x, present = torch.randn(2, 5, 3, 4), torch.rand(2, 5, 3) < 0.7
    assert isinstance(mixture(x), EnrichmentOutput)
    assert_block_contract(mixture, x, present)


@few
@given(example=examples())
def test_nan_of_an_absent_modality_reaches_nothing(
    example: tuple[InteractiveFusion, Streams],
) -> None:
    fusion, (x, present) = example
    dirty = outcome(fusion.mixture, with_nan(x, present), present)
    assert_same(dirty, outcome(fusion.mixture, x, present))
    assert not dirty[0][0][~present].any()


def test_it_starts_with_nothing_added_to_the_target() -> None:
    """The id of the paper keeps its stream until the amounts are trained."""
    mixture, x = InteractiveMixture(4, 3), torch.randn(5, 3, 4)
    assert mixture.amount.tolist() == [0, 1, 1]
    enriched = mixture(x).x
    assert_same(enriched[:, 0], x[:, 0])
    assert not torch.isclose(enriched[:, 1:], x[:, 1:]).any()
    assert InteractiveMixture(4, 3, target=2).amount.tolist() == [1, 1, 0]
    assert InteractiveMixture(4, 3, target=None).amount.tolist() == [1, 1, 1]
    assert InteractiveMixture(4, 1).amount.tolist() == [0]
    drawn(mixture).reset_parameters()
    assert mixture.amount.tolist() == [0, 1, 1]


def test_the_amount_of_the_target_is_trained_from_zero_on() -> None:
    mixture = InteractiveMixture(4, 3)
    mixture(torch.randn(5, 3, 4)).x.square().sum().backward()
    assert mixture.amount.grad is not None
    assert (mixture.amount.grad != 0).all()


def test_each_expert_reads_all_modalities() -> None:
    mixture, x = InteractiveMixture(4, 3, target=None), torch.randn(3, 4)
    for m in range(3):
        other = x.clone()
        other[m] = torch.randn(4)
        assert not torch.isclose(mixture(x).x, mixture(other).x).any()


# -- the fusion ------------------------------------------------------------------------------------


@few
@given(example=examples())
def test_dropping_a_modality_equals_masking_it(
    example: tuple[InteractiveFusion, Streams],
) -> None:
    """With it go its rows and columns of the experts, and its gate."""
    more, (x, present) = example
    dim, experts = more.mixture.dim, more.mixture.num_experts
    kept = [m for m in range(more.num_modalities) if m % 2 == 0]
    less = InteractiveFusion(dim, len(kept), num_experts=experts).double()
    shape = (experts, more.num_modalities, dim)
    weight = more.mixture.experts.weight.view(*shape, *shape[1:])[:, kept][..., kept, :]
    bias = more.mixture.experts.bias.view(shape)[:, kept]
    parts = {
        "experts.weight": weight.reshape(experts * len(kept) * dim, len(kept) * dim),
        "experts.bias": bias.flatten(),
        "gate.weight": more.mixture.gate.weight[kept],
        "gate.bias": more.mixture.gate.bias[kept],
        "amount": more.mixture.amount[kept],
    }
    less.mixture.load_state_dict(parts)
    hidden = present.clone()
    hidden[..., 1::2] = False
    fused = less(x[..., kept, :], present[..., kept]).fused
    torch.testing.assert_close(more(x, hidden).fused, fused)


@few
@given(example=examples())
def test_nothing_present_gives_zero(example: tuple[InteractiveFusion, Streams]) -> None:
    fusion, (x, present) = example
    fused = fusion(x, torch.zeros_like(present)).fused
    assert_same(fused, torch.zeros_like(fused))


def test_one_modality_starts_as_it_is() -> None:
    x = torch.randn(5, 1, 4)
    assert_same(InteractiveFusion(4, 1)(x).fused, x[:, 0])


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [InteractiveMixture, InteractiveFusion])
@pytest.mark.parametrize("target", [-1, 2])
def test_rejects_a_target_that_is_no_modality(
    block: type[InteractiveMixture | InteractiveFusion], target: int
) -> None:
    message = rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    with pytest.raises(ValueError, match=message):
        block(4, 2, target=target)


@pytest.mark.parametrize("block", [InteractiveMixture, InteractiveFusion])
def test_rejects_no_experts(block: type[InteractiveMixture | InteractiveFusion]) -> None:
    with pytest.raises(ValueError, match=r"Expected num_experts > 0, got 0\."):
        block(4, 2, num_experts=0)


def test_the_enrichment_rejects_inputs_that_do_not_fit() -> None:
    mixture, x = InteractiveMixture(4, 2), torch.ones(3, 2, 4)
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 2, 3\)"):
        mixture(x[..., :3])
    with pytest.raises(ValueError, match=r"Expected present of shape \(3, 2\), got \(1, 2\)\."):
        mixture(x, x[:1, :, 0] > 0)


def test_repr_tells_the_options() -> None:
    shown = repr(InteractiveFusion(4, 3, num_experts=5, target=None))
    assert shown.startswith("InteractiveFusion(\n  dim=4, num_modalities=3\n")
    assert "dim=4, num_modalities=3, num_experts=5, target=None" in shown
