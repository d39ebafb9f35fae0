"""Tests for mmfuse.fusion.frequency; test_registry.py has what all fusions promise alike."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import FrequencyFusion
from tests.outcomes import assert_same, drawn, places
from tests.references import assert_each_history, plus
from tests.strategies import Sequences, leads, sequences

few = settings(max_examples=15)
fewer = settings(max_examples=10)
histories = sequences(lead=leads(1), num_modalities=st.integers(1, 3))
Vector = list[float]


@st.composite
def examples(draw: st.DrawFn, **fixed: Any) -> tuple[FrequencyFusion, Sequences]:
    """A fusion in every configuration, and histories that may be shorter than it allows."""
    case = draw(histories)
    *_, length, num_modalities, dim = case.x.shape
    arguments = {
        "target": draw(st.integers(0, num_modalities - 1)),
        "max_length": length + draw(st.integers(0, 2)),
        "causal": draw(st.booleans()),
        **fixed,
    }
    return drawn(FrequencyFusion(dim, num_modalities, **arguments)), case


# -- reference: the formula, read aloud ------------------------------------------------------------


def convolve(first: dict[int, Vector], second: dict[int, Vector], size: int) -> list[Vector]:
    """Positions i and j meet at i + j, round a circle of this size."""
    met: list[Vector] = [[] for _ in range(size)]
    for i, a in first.items():
        for j, b in second.items():
            product = [u * v for u, v in zip(a, b, strict=True)]
            met[(i + j) % size] = plus(met[(i + j) % size] or [0.0] * len(a), product)
    return met


def gated(fusion: FrequencyFusion, m: int, vector: Vector) -> Vector:
    score = sum(v * w for v, w in zip(vector, fusion.weight[m].tolist(), strict=True))
    gate = 1 / (1 + math.exp(-(score + fusion.bias[m].item())))
    return [gate * v for v in vector]


@pytest.mark.parametrize("causal", [True, False])
@few
@given(data=st.data())
def test_matches_naive(causal: bool, data: st.DataObject) -> None:
    """What is not seen is left out of its sequence."""
    fusion, case = data.draw(examples(causal=causal))
    most = fusion.max_length
    size = 2 * most if causal else most  # nobody meets anybody round the wider circle

    def naive(x: list[list[Vector]], seen: list[list[bool]]) -> list[Vector]:
        kernel = dict(enumerate(fusion.kernel.tolist()))
        streams = [
            {i: row[m] for i, row in enumerate(x) if seen[i][m]}
            for m in range(fusion.num_modalities)
        ]
        parts = []
        for m, stream in enumerate(streams):
            if m == fusion.target:
                met = convolve(stream, kernel, size)
            else:
                told = convolve(stream, streams[fusion.target], size)
                met = [[v / math.sqrt(most) for v in row] for row in told]
            parts.append([gated(fusion, m, row or [0.0] * fusion.dim) for row in met])
        return [plus(*rows) for rows in zip(*parts, strict=True)][: len(x)]

    assert_each_history(fusion, case, naive)


# -- reference: the paper's, in the frequency domain -----------------------------------------------


def fourier(values: list[complex], sign: int) -> list[complex]:
    """The orthonormal transform, or its inverse."""
    n = len(values)
    turns = [[cmath.exp(sign * 2j * math.pi * k * i / n) for i in range(n)] for k in range(n)]
    return [
        sum(v * turn for v, turn in zip(values, row, strict=True)) / math.sqrt(n) for row in turns
    ]


def real_filter(size: int) -> list[complex]:
    """Any complex filter that keeps real numbers real: opposite frequencies are conjugate."""
    free = [complex(*torch.randn(2, dtype=torch.float64).tolist()) for _ in range(size // 2 + 1)]
    turned = [free[min(k, size - k)] for k in range(size)]
    turned = [w if k <= size - k else w.conjugate() for k, w in enumerate(turned)]
    return [complex(w.real) if 2 * k in {0, size} else w for k, w in enumerate(turned)]


@fewer
@given(example=examples(causal=False))
def test_matches_the_transforms_of_the_paper(example: tuple[FrequencyFusion, Sequences]) -> None:
    """Its learned complex filter is the spectrum of a kernel, whatever the filter."""
    fusion, (x, present, valid) = example
    most, target, (*_, length, num_modalities, dim) = fusion.max_length, fusion.target, x.shape
    filters = [real_filter(most) for _ in range(dim)]
    with torch.no_grad():
        for d, spectrum in enumerate(filters):
            kernel = [w / math.sqrt(most) for w in fourier(spectrum, +1)]
            assert max(abs(k.imag) for k in kernel) < 1e-9
            fusion.kernel[:, d] = torch.tensor([k.real for k in kernel], dtype=x.dtype)
    fused = fusion(x, present, valid=valid).fused
    for row in places(valid.shape[:-1]):
        clean = x[row] * (present[row] & valid[row].unsqueeze(-1)).unsqueeze(-1)
        filled = torch.cat([clean, clean.new_zeros(most - length, num_modalities, dim)])
        mixed = torch.zeros_like(filled)
        for m in range(num_modalities):
            for d, spectrum in enumerate(filters):
                own = fourier(filled[:, target, d].tolist(), -1)
                other = spectrum if m == target else fourier(filled[:, m, d].tolist(), -1)
                back = fourier([a * b for a, b in zip(own, other, strict=True)], +1)
                mixed[:, m, d] = torch.tensor([b.real for b in back], dtype=x.dtype)
        wanted = torch.zeros_like(filled[:, 0])
        for i in range(most):
            for m in range(num_modalities):
                wanted[i] += torch.tensor(gated(fusion, m, mixed[i, m].tolist()), dtype=x.dtype)
        wanted = wanted[:length] * valid[row].unsqueeze(-1)
        torch.testing.assert_close(fused[row], wanted)


# -- properties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_positions_meet_at_the_sum_of_their_places(causal: bool) -> None:
    """Counted from the first: this is why padding belongs after a sequence."""
    fusion = drawn(FrequencyFusion(2, 2, max_length=4, causal=causal)).requires_grad_(False)
    fusion.kernel.zero_()
    for own, other in places((4, 4)):
        x = torch.zeros(4, 2, 2, dtype=torch.float64)
        x[own, 0] = x[other, 1] = 1
        heard = fusion(x).fused.abs().sum(-1) > 1e-9
        met = own + other if causal else (own + other) % 4
        assert heard.nonzero().flatten().tolist() == [i for i in range(4) if i == met]


@fewer
@given(example=examples())
def test_a_shorter_sequence_is_one_that_is_padded(
    example: tuple[FrequencyFusion, Sequences],
) -> None:
    fusion, (x, present, _) = example
    *lead, length, _, _ = x.shape
    longer = torch.randn(*lead, fusion.max_length, *x.shape[-2:], dtype=x.dtype)
    longer[..., :length, :, :] = x
    there = torch.ones(longer.shape[:-1], dtype=torch.bool)
    there[..., :length, :] = present
    real = torch.arange(fusion.max_length) < length
    padded = fusion(longer, there, valid=real.expand(longer.shape[:-2])).fused
    torch.testing.assert_close(padded[..., :length, :], fusion(x, present).fused)
    assert not padded[..., length:, :].any()


@fewer
@given(example=examples(target=0))
def test_dropping_another_modality_equals_masking_it(
    example: tuple[FrequencyFusion, Sequences],
) -> None:
    more, (x, present, valid) = example
    kept = [m for m in range(more.num_modalities) if m % 2 == 0]
    options = {"max_length": more.max_length, "causal": more.causal}
    less = FrequencyFusion(more.dim, len(kept), **options).double()
    less.load_state_dict(
        {"kernel": more.kernel, "weight": more.weight[kept], "bias": more.bias[kept]}
    )
    hidden = present.clone()
    hidden[..., 1::2] = False
    fused = less(x[..., kept, :], present[..., kept], valid=valid).fused
    torch.testing.assert_close(more(x, hidden, valid=valid).fused, fused)


@fewer
@given(example=examples())
def test_any_modality_can_be_the_target(example: tuple[FrequencyFusion, Sequences]) -> None:
    """It is the same to give another modality first."""
    fusion, (x, present, valid) = example
    target, options = fusion.target, {"max_length": fusion.max_length, "causal": fusion.causal}
    order = [target, *(m for m in range(fusion.num_modalities) if m != target)]
    first = FrequencyFusion(fusion.dim, fusion.num_modalities, **options).double()
    first.load_state_dict(
        {"kernel": fusion.kernel, "weight": fusion.weight[order], "bias": fusion.bias[order]}
    )
    fused = first(x[..., order, :], present[..., order], valid=valid).fused
    torch.testing.assert_close(fused, fusion(x, present, valid=valid).fused)


@fewer
@given(example=examples())
def test_where_the_target_is_never_seen_zeros_are_left(
    example: tuple[FrequencyFusion, Sequences],
) -> None:
    fusion, (x, present, valid) = example
    present[..., fusion.target] = False
    fused = fusion(x, present, valid=valid).fused
    assert_same(fused, torch.zeros_like(fused))


def test_it_starts_near_a_filter_that_passes_its_input() -> None:
    fusion = FrequencyFusion(64, 2, max_length=20)
    passing = torch.zeros(20, 64)
    passing[0] = 1
    assert (fusion.kernel - passing).std().item() == pytest.approx(0.02, rel=0.1)
    fusion = FrequencyFusion(4, 1, max_length=5).requires_grad_(False)
    fusion.kernel.copy_(passing[:5, :4])
    x = torch.randn(5, 1, 4)
    gate = torch.sigmoid(x @ fusion.weight[0])
    torch.testing.assert_close(fusion(x).fused, gate * x.squeeze(-2))


def test_the_filter_is_the_only_thing_left_of_one_modality() -> None:
    fusion = drawn(FrequencyFusion(1, 1, max_length=2))
    x = torch.tensor([2.0, 3.0], dtype=torch.float64).view(2, 1, 1)
    first, second = fusion.kernel.flatten()
    mixed = torch.stack([2 * first, 3 * first + 2 * second])
    gate = torch.sigmoid(mixed * fusion.weight.squeeze() + fusion.bias)
    torch.testing.assert_close(fusion(x).fused.squeeze(-1), gate * mixed)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [-1, 2])
def test_rejects_a_target_that_is_no_modality(target: int) -> None:
    message = rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    with pytest.raises(ValueError, match=message):
        FrequencyFusion(4, 2, target=target)


def test_rejects_bad_lengths() -> None:
    with pytest.raises(ValueError, match=r"Expected max_length > 0, got 0\."):
        FrequencyFusion(4, 2, max_length=0)
    fusion = FrequencyFusion(4, 2, max_length=3)
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 3, got 4\."):
        fusion(torch.zeros(2, 4, 2, 4))


def test_repr_tells_the_options() -> None:
    shown = repr(FrequencyFusion(4, 3, target=1, max_length=7, causal=False))
    wanted = "dim=4, num_modalities=3, target=1, max_length=7, causal=False"
    assert shown == f"FrequencyFusion({wanted})"
