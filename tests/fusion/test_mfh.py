"""Tests for mmfuse.fusion.mfh."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import MFBFusion, MFHFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


def pooled(product: list[float], factor: int) -> list[float]:
    """Sum of neighbours, signed root (smooth at zero), unit length."""
    sums = [sum(product[i : i + factor]) for i in range(0, len(product), factor)]
    whole = math.sqrt(sum(value**2 for value in sums))
    roots = [value / whole / math.sqrt(abs(value / whole) + 1e-6) for value in sums]
    length = math.sqrt(sum(root * root for root in roots))
    return [root / length for root in roots]


def products(
    fusion: MFBFusion | MFHFusion, x: list[list[float]], present: list[bool]
) -> list[float]:
    product = [1.0] * fusion.factors.out_dim
    for m, vector in enumerate(x):
        if present[m]:
            factor = naive_linear(fusion.factors.weight[m].tolist(), vector)
            product = [p * f for p, f in zip(product, factor, strict=True)]
    return product


@few
@given(case=streams())
def test_bilinear_pooling_matches_naive(case: Streams) -> None:
    fusion = drawn(MFBFusion(case.x.shape[-1], case.x.shape[-2], factor=2)).eval()
    assert_each_row(fusion, case, lambda x, present: pooled(products(fusion, x, present), 2))


@few
@given(case=streams())
def test_high_order_pooling_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(MFHFusion(dim, num_modalities, factor=2, order=3)).eval()

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        every, before, together = products(fusion, x, present), [1.0] * (2 * dim), []
        for i in range(3):
            own = every[2 * dim * i : 2 * dim * (i + 1)]
            before = [a * b for a, b in zip(before, own, strict=True)]
            together += pooled(before, 2)
        fused = naive_linear(fusion.out.weight.tolist(), together)
        return [y + b for y, b in zip(fused, fusion.out.bias.tolist(), strict=True)]

    assert_each_row(fusion, case, naive)


@pytest.mark.parametrize("kind", [MFBFusion, MFHFusion])
def test_dropping_a_modality_equals_masking_it(kind: type) -> None:
    more, less = drawn(kind(3, 3)).eval(), drawn(kind(3, 2)).eval()
    state = {**more.state_dict(), "factors.weight": more.factors.weight[[0, 2]].detach()}
    less.load_state_dict(state)
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(4, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


@pytest.mark.parametrize("kind", [MFBFusion, MFHFusion])
def test_the_root_of_zero_has_a_finite_gradient(kind: type) -> None:
    fusion, x = kind(4, 2).eval(), torch.zeros(3, 2, 4, requires_grad=True)
    fusion(x).fused.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
@pytest.mark.parametrize("kind", [MFBFusion, MFHFusion])
def test_the_scale_of_the_inputs_means_nothing_in_half_precision_either(
    kind: type, scale: float
) -> None:
    fusion, x = kind(16, 3).eval(), torch.randn(32, 3, 16)
    wanted = fusion(x).fused
    torch.testing.assert_close(fusion(scale * x).fused, wanted, rtol=1e-3, atol=1e-4)
    x = (scale * x).half() if scale >= 1 else x.half()
    x[0, 1] = 0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        fused = fusion(x).fused
    assert (fused[1:].float() - wanted[1:]).norm() < 0.05 * wanted.norm()
    fused.float().square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())


@pytest.mark.parametrize("kind", [MFBFusion, MFHFusion])
def test_dropout_thins_out_in_training_only(kind: type) -> None:
    fusion, x = kind(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected order > 0, got 0\."):
        MFHFusion(4, 2, order=0)
    for kind in (MFBFusion, MFHFusion):
        with pytest.raises(ValueError, match=r"Expected factor > 0, got 0\."):
            kind(4, 2, factor=0)
        with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
            kind(4, 2, dropout=2)
