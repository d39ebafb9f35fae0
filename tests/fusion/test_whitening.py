"""Tests for mmfuse.fusion.whitening; test_registry.py has what all fusions promise alike."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmfuse.fusion import WhiteningFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, assert_same, drawn
from tests.references import naive_linear
from tests.strategies import sizes, streams

few = settings(max_examples=25)
fewer = settings(max_examples=10)
Vector = list[float]


@st.composite
def examples(draw: st.DrawFn) -> tuple[WhiteningFusion, Streams]:
    """A fusion with any target or none, which draws no noise, and streams."""
    case = draw(streams())
    num_modalities, dim = case.x.shape[-2:]
    target = draw(st.none() | st.integers(0, num_modalities - 1))
    fusion = WhiteningFusion(dim, num_modalities, num_experts=draw(sizes), target=target)
    return drawn(fusion).eval(), case


# -- reference: the formula, read aloud ------------------------------------------------------------


@few
@given(example=examples())
def test_matches_naive(example: tuple[WhiteningFusion, Streams]) -> None:
    """What is absent is left out."""
    fusion, case = example
    adapted = [m for m in range(fusion.num_modalities) if m != fusion.target]
    adaptors = dict(zip(adapted, fusion.adaptors, strict=True))

    def adapt(m: int, x: Vector) -> Vector:
        adaptor, total = adaptors[m], [0.0] * len(x)
        powers = [math.exp(score) for score in naive_linear(adaptor.gate.weight.tolist(), x)]
        for e, power in enumerate(powers):
            shift = adaptor.shift[e].tolist()
            shifted = [value - b for value, b in zip(x, shift, strict=True)]
            turned = naive_linear(adaptor.experts.weight[e].tolist(), shifted)
            total = [t + power / sum(powers) * v for t, v in zip(total, turned, strict=True)]
        return total

    def naive(x: list[Vector], present: list[bool]) -> Vector:
        parts = [x[m] if m == fusion.target else adapt(m, x[m]) for m, p in enumerate(present) if p]
        return [sum(part[d] for part in parts) for d in range(fusion.dim)]

    assert_each_row(fusion, case, naive)


# -- noise and dropout -----------------------------------------------------------------------------


def telling_gates(dim: int) -> WhiteningFusion:
    """One modality whose experts answer with a one-hot code each: what comes out is the gate."""
    fusion = drawn(WhiteningFusion(dim, 1, num_experts=dim, dropout=0.0)).requires_grad_(False)
    adaptor = fusion.adaptors[0]
    adaptor.experts.weight.copy_(torch.eye(dim).expand(dim, dim, dim))
    return fusion


def gates(fusion: WhiteningFusion, x: torch.Tensor, times: int) -> torch.Tensor:
    adaptor = fusion.adaptors[0]
    adaptor.shift.copy_(x - torch.eye(len(x)))
    return fusion(x.expand(times, 1, len(x))).fused


def test_noise_is_added_to_the_scores_in_training_only() -> None:
    """Normal, around the clean scores, as wide as softplus + 0.01 of another product says."""
    fusion, x = telling_gates(3), torch.randn(3, dtype=torch.float64)
    adaptor = fusion.adaptors[0]
    clean = adaptor.gate(x)
    # the noise of the last two experts is nearly the least
    wide = torch.tensor([1.5, -60.0, -60.0], dtype=torch.float64)
    adaptor.noise.weight.copy_(torch.outer(wide, x) / x.dot(x))
    deviations = torch.tensor([math.log1p(math.exp(1.5)) + 0.01, 0.01, 0.01], dtype=torch.float64)
    torch.testing.assert_close(F.softplus(adaptor.noise(x)) + 0.01, deviations)

    told = gates(fusion.train(), x, 20_000).log()
    first, second = told[:, 0] - told[:, 1], told[:, 1] - told[:, 2]
    for ratio, (a, b) in ((first, (0, 1)), (second, (1, 2))):
        spread = torch.hypot(deviations[a], deviations[b])
        drift = (ratio.mean() - (clean[a] - clean[b])) / spread
        assert abs(drift.item()) < 4 / math.sqrt(20_000)
        assert (ratio.std() / spread).item() == pytest.approx(1, abs=4 / math.sqrt(2 * 20_000))
        standard = (ratio - ratio.mean()) / ratio.std()
        assert ((standard.abs() < 1).double().mean()).item() == pytest.approx(0.6827, abs=0.02)

    quiet = gates(fusion.eval(), x, 2)
    torch.testing.assert_close(quiet, torch.softmax(clean, -1).expand(2, 3))


def test_the_mean_gate_of_little_noise_is_near_the_clean_one() -> None:
    fusion, x = telling_gates(4), torch.randn(4, dtype=torch.float64)
    adaptor = fusion.adaptors[0]
    adaptor.noise.weight.copy_(-60 * x.expand(4, 4) / x.dot(x))  # 0.01 alone is left
    noisy = gates(fusion.train(), x, 2000)
    assert (noisy.std(0) > 0).all()
    wanted = torch.softmax(adaptor.gate(x), -1)
    torch.testing.assert_close(noisy.mean(0), wanted, rtol=0, atol=1e-3)


def test_noise_is_drawn_for_each_row_expert_and_modality_alone() -> None:
    fusion = WhiteningFusion(3, 2, num_experts=2, dropout=0.0)
    x = torch.randn(3).expand(4, 2, 3)
    for m in range(2):
        only = torch.arange(2).expand(4, 2) == m
        assert len(fusion(x, only).fused.unique(dim=0)) == 4


def test_dropout_thins_out_what_the_experts_read_and_not_the_gate() -> None:
    fusion = WhiteningFusion(3, 2, num_experts=2, target=0, dropout=1.0).requires_grad_(False)
    adaptor, x = fusion.adaptors[0], torch.randn(5, 2, 3)
    adaptor.shift.normal_()
    adaptor.gate.weight.copy_(torch.tensor([[200.0, 0, 0], [-200, 0, 0]]))  # whatever the noise
    x[:, 1, 0] = torch.tensor([1.0, -1, 1, -1, -1])
    answers = torch.stack([adaptor.experts.weight[e] @ -adaptor.shift[e] for e in (0, 1)])
    torch.testing.assert_close(fusion(x).fused, x[:, 0] + answers[[0, 1, 0, 1, 1]])
    assert not torch.allclose(fusion.eval()(x).fused, x[:, 0] + answers[[0, 1, 0, 1, 1]])


# -- absent modalities, targets --------------------------------------------------------------------


@fewer
@given(example=examples())
def test_dropping_a_modality_equals_masking_it(example: tuple[WhiteningFusion, Streams]) -> None:
    more, (x, present) = example
    kept = [m for m in range(more.num_modalities) if m % 2 == 0]
    adapted = [m for m in range(more.num_modalities) if m != more.target]
    target = kept.index(more.target) if more.target in kept else None
    less = WhiteningFusion(more.dim, len(kept), target=target)
    less.adaptors = torch.nn.ModuleList(
        adaptor for m, adaptor in zip(adapted, more.adaptors, strict=True) if m in kept
    )
    hidden = present.clone()
    hidden[..., 1::2] = False
    fused = less.eval()(x[..., kept, :], present[..., kept]).fused
    torch.testing.assert_close(more(x, hidden).fused, fused)


@fewer
@given(example=examples())
def test_nothing_present_gives_zero(example: tuple[WhiteningFusion, Streams]) -> None:
    fusion, (x, present) = example
    fused = fusion(x, torch.zeros_like(present)).fused
    assert_same(fused, torch.zeros_like(fused))


def test_the_target_passes_as_it_is() -> None:
    x = torch.randn(5, 3, 4)
    only = torch.tensor([False, True, False]).expand(5, 3)
    assert_same(WhiteningFusion(4, 3, target=1)(x, only).fused, x[:, 1])
    alone = WhiteningFusion(4, 1, target=0)
    assert_same(alone(x[:, :1]).fused, x[:, 0])
    assert not list(alone.parameters())


def test_an_expert_that_whitens_gives_white_numbers() -> None:
    """What the paper names them after: shift by the mean, turn by the inverse root."""
    x = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3).double() + 5
    fusion = WhiteningFusion(3, 1, num_experts=1).double().eval().requires_grad_(False)
    values, vectors = torch.linalg.eigh(x.T.cov())
    fusion.adaptors[0].shift.copy_(x.mean(0))
    fusion.adaptors[0].experts.weight.copy_((vectors / values.sqrt()).T)
    white = fusion(x.unsqueeze(-2)).fused
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(white.T.cov(), torch.eye(3, dtype=torch.float64))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [-1, 2])
def test_rejects_a_target_that_is_no_modality(target: int) -> None:
    message = rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    with pytest.raises(ValueError, match=message):
        WhiteningFusion(4, 2, target=target)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected num_experts > 0, got 0\."):
        WhiteningFusion(4, 2, num_experts=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got -0\.5\."):
        WhiteningFusion(4, 2, dropout=-0.5)


def test_repr_tells_the_options() -> None:
    assert "dim=4, num_modalities=3, target=1" in repr(WhiteningFusion(4, 3, target=1))
