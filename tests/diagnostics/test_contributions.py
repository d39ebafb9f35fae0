"""Tests for mmfuse.diagnostics.contributions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmfuse.diagnostics import gradient_contributions, leave_one_out
from mmfuse.experts import AttentiveRouter
from mmfuse.fusion import MixtureFusion, SumFusion, available, build
from mmfuse.types import FusionOutput, Streams
from tests.outcomes import assert_same, drawn, places
from tests.strategies import streams, with_nan

few = settings(max_examples=25)
each_fusion = pytest.mark.parametrize("name", available())
Fuse = Callable[..., Any]


def total(fused: Tensor) -> Tensor:
    """A score."""
    return fused.sum(-1)


#: Gradients want a score; a test may give another.
gradients = functools.partial(gradient_contributions, score=total)
each_method = pytest.mark.parametrize("method", [leave_one_out, gradients], ids=["loo", "gradient"])

#: Smooth, with and without parameters that modalities share.
SMOOTH = ("mean", "gated", "mlp", "product", "attention_pooling")


def made(name: str, x: Tensor) -> nn.Module:
    return drawn(build(name, x.shape[-1], x.shape[-2]).eval())


def sum_of(x: Tensor) -> nn.Module:
    return made("sum", x)


def linear(dim: int) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(dim, dtype=torch.float64)
    return lambda fused: fused @ weight


# -- reference: the formulas, read aloud -----------------------------------------------------------


def length(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def naive_leave_one_out(fusion: Fuse, x: Tensor, present: Tensor, score: Any) -> Tensor:
    """Row by row and modality by modality."""
    result = torch.zeros(present.shape, dtype=x.dtype)
    for *place, m in places(present.shape):
        mask = present[tuple(place)]
        if mask[m]:
            without = mask.clone()
            without[m] = False
            full = fusion(x[tuple(place)], mask).fused
            part = fusion(x[tuple(place)], without).fused
            change = (full - part).tolist()
            result[(*place, m)] = length(change) if score is None else score(full) - score(part)
    return result


def naive_gradient_contributions(
    fusion: Fuse, x: Tensor, present: Tensor, score: Any, steps: int
) -> Tensor:
    """By finite differences, at each of the points between zero and the row."""
    h, result = 1e-5, torch.zeros(present.shape, dtype=x.dtype)
    scales = [1.0] if steps == 1 else [(k - 0.5) / steps for k in range(1, steps + 1)]
    for *place, m in places(present.shape):
        row, mask = x[tuple(place)], present[tuple(place)]
        for d in range(row.shape[-1]) if mask[m] else ():
            nudge = torch.zeros_like(row)
            nudge[m, d] = h
            for scale in scales:
                up = score(fusion(scale * row + nudge, mask).fused)
                down = score(fusion(scale * row - nudge, mask).fused)
                result[(*place, m)] += row[m, d] * (up - down) / (2 * h) / steps
    return result


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("scored", [False, True])
@few
@given(case=streams())
def test_leave_one_out_matches_naive(name: str, scored: bool, case: Streams) -> None:
    fusion = made(name, case.x)
    score = linear(case.x.shape[-1]) if scored else None
    got = leave_one_out(fusion, *case, score=score)
    torch.testing.assert_close(got, naive_leave_one_out(fusion, *case, score))


@pytest.mark.parametrize("name", SMOOTH)
@settings(max_examples=10)
@given(case=streams(num_modalities=st.integers(1, 3)), steps=st.integers(1, 3))
def test_gradient_contributions_match_naive(name: str, case: Streams, steps: int) -> None:
    fusion, weigh = made(name, case.x), linear(case.x.shape[-1])

    def score(fused: Tensor) -> Tensor:
        return weigh(fused).sin()

    got = gradient_contributions(fusion, *case, score=score, steps=steps)
    wanted = naive_gradient_contributions(fusion, *case, score, steps)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# -- properties: what is known in closed form ------------------------------------------------------


@few
@given(streams(), st.integers(1, 4))
def test_for_a_sum_and_a_linear_score_each_part_has_its_own_score(
    case: Streams, steps: int
) -> None:
    fusion, score = sum_of(case.x), linear(case.x.shape[-1])
    wanted = score(case.x) * case.present
    torch.testing.assert_close(leave_one_out(fusion, *case, score=score), wanted)
    got = gradient_contributions(fusion, *case, score=score, steps=steps)
    torch.testing.assert_close(got, wanted)


@few
@given(streams())
def test_without_a_score_a_sum_loses_the_length_of_a_part(case: Streams) -> None:
    wanted = torch.linalg.vector_norm(case.x, dim=-1) * case.present
    torch.testing.assert_close(leave_one_out(sum_of(case.x), *case), wanted)


@few
@given(streams(), st.integers(2, 4))
def test_of_a_square_the_gradient_counts_twice_and_the_integral_once(
    case: Streams, steps: int
) -> None:
    def square(fused: Tensor) -> Tensor:
        return fused.square().sum(-1)

    fusion = sum_of(case.x)
    fused = fusion(*case).fused
    wanted = (case.x * fused.unsqueeze(-2)).sum(-1) * case.present
    once = gradient_contributions(fusion, *case, score=square, steps=steps)
    torch.testing.assert_close(once, wanted)
    twice = gradient_contributions(fusion, *case, score=square)
    torch.testing.assert_close(twice, 2 * wanted)


@pytest.mark.parametrize("name", [*SMOOTH, "concat", "low_rank"])
def test_integrated_gradients_are_complete(name: str) -> None:
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    fusion, score = build(name, 4, 3).double().eval(), linear(4)
    present = torch.tensor([True, False, True]).expand(5, 3)
    wanted = score(fusion(x, present).fused) - score(fusion(0 * x, present).fused)

    def gap(steps: int) -> float:
        got = gradient_contributions(fusion, x, present, score=score, steps=steps)
        return float((got.sum(-1) - wanted).abs().max().detach())

    assert gap(40) < 1e-3
    assert gap(40) < 0.1 * gap(10) + 1e-12  # a midpoint rule: the error falls with the square


@pytest.mark.parametrize("name", ["mfb", "mfh"])
def test_what_forgets_the_length_of_streams_is_never_complete(name: str) -> None:
    """As the docstring warns: the fusion jumps at zero, and steps do not see it."""
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    fusion, score = build(name, 4, 3).double().eval(), linear(4)
    change = score(fusion(x).fused) - score(fusion(0 * x).fused)
    assert (change.abs() > 1e-3).all()
    for steps in (1, 50):
        together = gradient_contributions(fusion, x, score=score, steps=steps).sum(-1)
        assert (together.abs() < 1e-9).all()


def test_two_that_say_the_same_replace_each_other() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [-1.0, 0.0]])
    assert leave_one_out(build("max", 2, 3).eval(), x).tolist() == [0, 0, 0]
    lonely = torch.tensor([True, False, True])
    first, second, _ = leave_one_out(build("max", 2, 3).eval(), x, lonely).tolist()
    assert (first, second) == (pytest.approx(math.sqrt(8)), 0)


# -- properties: every fusion ----------------------------------------------------------------------

PRESENT = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])


@each_fusion
@each_method
def test_of_any_fusion_they_are_finite_and_zero_where_absent(method: Fuse, name: str) -> None:
    x = torch.randn(3, 3, 4, dtype=torch.float64)
    fusion, score = made(name, x), linear(4)
    got = method(fusion, with_nan(x, PRESENT), PRESENT, score=score)
    assert got.isfinite().all()
    assert (got[~PRESENT] == 0).all()
    assert (got[:2][PRESENT[:2]] != 0).any()
    assert_same(got, method(fusion, x, PRESENT, score=score))


@each_fusion
def test_of_any_fusion_integrated_gradients_are_finite(name: str) -> None:
    x = torch.randn(3, 3, 4)
    fusion = made(name, x).float()
    got = gradients(fusion, with_nan(x, PRESENT), PRESENT, steps=3)
    assert got.isfinite().all()
    assert (got[~PRESENT] == 0).all()


@each_method
@few
@given(case=streams())
def test_all_present_is_no_mask(method: Fuse, case: Streams) -> None:
    fusion, everywhere = made("gated", case.x), torch.ones_like(case.present)
    torch.testing.assert_close(method(fusion, case.x), method(fusion, case.x, everywhere))


@each_method
@few
@given(case=streams())
def test_rows_do_not_mix(method: Fuse, case: Streams) -> None:
    fusion = made("mlp", case.x)
    together = method(fusion, *case)
    assert together.shape == case.present.shape
    for place in places(case.x.shape[:-2]):
        alone = method(fusion, case.x[place], case.present[place])
        torch.testing.assert_close(together[place], alone)


@each_method
@pytest.mark.parametrize("name", ["sum", "product", "attention_pooling"])
@few
@given(case=streams())
def test_permuting_modalities_permutes_contributions(
    method: Fuse, name: str, case: Streams
) -> None:
    fusion, order = made(name, case.x), torch.randperm(case.x.shape[-2])
    permuted = method(fusion, case.x[..., order, :], case.present[..., order])
    torch.testing.assert_close(permuted, method(fusion, *case)[..., order])


# -- how the fusion is called ----------------------------------------------------------------------


@each_method
def test_context_and_keywords_reach_the_fusion(method: Fuse) -> None:
    def scaled(
        x: Tensor, present: Tensor | None, context: Tensor | None, *, factor: Tensor
    ) -> FusionOutput:
        assert context is not None
        fused = context.unsqueeze(-1) * factor * SumFusion(4, 3)(x, present).fused
        return FusionOutput(fused, None, {})

    x, context = torch.randn(5, 3, 4), torch.arange(1.0, 6.0)
    got = method(scaled, x, None, context, score=lambda y: y[..., 0], keywords={"factor": 2.0})
    torch.testing.assert_close(got, 2 * context.unsqueeze(-1) * x[..., 0])


def test_leave_one_out_calls_once_a_modality_and_keeps_no_graph() -> None:
    graphs = []

    def fuse(*inputs: Any) -> FusionOutput:
        output = fusion(*inputs)
        graphs.append(output.fused.requires_grad)
        return output

    fusion, x = build("mlp", 4, 3).eval(), torch.randn(5, 3, 4, requires_grad=True)
    assert not leave_one_out(fuse, x).requires_grad
    assert graphs == [False] * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_work_in_any_mode_and_leave_nothing_behind(mode: Fuse, steps: int) -> None:
    fusion, score = build("mlp", 4, 3).eval(), nn.Linear(4, 1)
    x = torch.randn(5, 3, 4, requires_grad=True)
    present = torch.rand(5, 3) < 0.7

    def contributions(*case: Tensor) -> Tensor:
        return gradient_contributions(
            fusion, *case, score=lambda fused: score(fused).squeeze(-1), steps=steps
        )

    wanted = contributions(x, present)
    with mode():
        got = contributions(x * 1, present & True)
    assert_same(got, wanted)
    assert not got.requires_grad
    assert not got.is_inference()
    parts = [x, *fusion.parameters(), *score.parameters()]
    assert all(part.grad is None for part in parts)
    assert all(part.requires_grad for part in parts)


def test_in_inference_mode_context_and_keywords_are_usable_too() -> None:
    def fuse(x: Tensor, present: Any, context: Any, *, factor: Tensor) -> FusionOutput:
        return FusionOutput((x * context * factor).sum(-2), None, {})

    with torch.inference_mode():
        x, context, factor = torch.ones(3, 4), torch.full((4,), 2.0), torch.full((4,), 3.0)
        got = gradient_contributions(
            fuse, x, None, context, score=lambda fused: fused.sum(-1), keywords={"factor": factor}
        )
    assert got.tolist() == [24, 24, 24]


@each_method
def test_a_compiled_fusion_gives_the_same(method: Fuse) -> None:
    fusion, x = build("gated", 4, 3).eval(), torch.randn(5, 3, 4)
    present = torch.rand(5, 3) < 0.7
    compiled = torch.compile(fusion, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(method(compiled, x, present), method(fusion, x, present))


@each_method
def test_along_a_sequence_contributions_are_of_all_positions(method: Fuse) -> None:
    router = AttentiveRouter(3 * 4, 2, causal=True)
    fusion = drawn(MixtureFusion(4, 3, num_experts=2, router=router).eval())
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)

    def last(fused: Tensor) -> Tensor:
        """The score of the last position, at every position."""
        return fused[..., -1:, :].sum(-1).expand(fused.shape[:-1]) / 5

    got = method(fusion, x, score=last)
    assert got.shape == (2, 5, 3)
    if method is leave_one_out:  # the same loss is seen from everywhere
        torch.testing.assert_close(got, got[:, :1].expand_as(got))
    else:  # the last score reads the streams of earlier positions
        assert (got[:, 0] != 0).all()


# -- precision -------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32(method: Fuse, dtype: torch.dtype) -> None:
    fusion, x = build("gated", 4, 3).eval(), torch.randn(5, 3, 4).to(dtype)
    wide = method(fusion, x.float())
    got = method(fusion.to(dtype), x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wide, rtol=0.05, atol=0.05)


def test_whole_numbers_can_be_a_score_of_leave_one_out() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    got = leave_one_out(sum_of(x).float(), x, score=lambda fused: fused.argmax(-1))
    assert got.tolist() == [-1, 0]


@each_method
def test_without_rows_there_is_nothing(method: Fuse) -> None:
    assert method(build("mlp", 4, 3).eval(), torch.ones(0, 3, 4)).shape == (0, 3)


# -- errors ----------------------------------------------------------------------------------------

X = torch.ones(3, 2, 4)
FUSION = SumFusion(4, 2).eval()


@each_method
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.long(),), r"Expected x of a floating dtype, got torch\.int64\."),
        (
            ({"text": X},),
            r"Expected x as a tensor of streams .*, got dict; ModalityProjection makes",
        ),
        ((X, {"text": X}), r"Expected present as a tensor, got dict\."),
        ((X[0, 0],), r"Expected x of shape \(\.\.\., M, D\), got \(4,\)\."),
        ((X, X[..., 0]), r"Expected present of dtype torch\.bool, got torch\.float32\."),
        ((X, X[:1, :, 0] > 0), r"Expected present of shape \(3, 2\), got \(1, 2\)\."),
    ],
)
def test_rejects_bad_inputs(method: Fuse, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(FUSION, *arguments)


@each_method
def test_rejects_bad_outputs(method: Fuse) -> None:
    with pytest.raises(ValueError, match=r"Expected score of shape \(3,\), got \(3, 1\)\."):
        method(FUSION, X, score=lambda fused: fused[:, :1])
    with pytest.raises(ValueError, match=r"Expected fused of shape \(3, D\), got \(4,\)\."):
        method(lambda *_: FusionOutput(X[0, 0], None, {}), X)


@each_method
def test_rejects_training_mode_and_changes_no_mode(method: Fuse) -> None:
    fusion = build("mlp", 4, 2, dropout=0.5)
    message = r"Expected a fusion in eval mode, got one in training mode\."
    with pytest.raises(ValueError, match=message):
        method(fusion, X)
    assert fusion.training
    method(fusion.forward, X)  # by a function, as the caller wants it
    fusion.eval()
    next(fusion.children()).train()
    with pytest.raises(ValueError, match=message):
        method(fusion, X)


def test_rejects_no_steps_and_scores_without_gradient() -> None:
    with pytest.raises(ValueError, match=r"Expected steps > 0, got 0\."):
        gradients(FUSION, X, steps=0)
    with pytest.raises(ValueError, match=r"score as a function of the fused vectors, got NoneType"):
        gradients(FUSION, X, score=None)
    with pytest.raises(TypeError, match=r"score"):
        gradient_contributions(FUSION, X)
    with pytest.raises(ValueError, match=r"Expected a score with a gradient, got one without\."):
        gradient_contributions(FUSION, X, score=lambda fused: fused.argmax(-1))
