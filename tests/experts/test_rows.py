"""Tests for mmfuse.experts.rows."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfuse._activation import ACTIVATIONS
from mmfuse.experts import expert_rows
from tests.outcomes import assert_same
from tests.strategies import seeds, sizes

both = pytest.mark.parametrize("grouped", [False, True], ids=["loop", "grouped"])


class Case(NamedTuple):
    """The operands of the operator."""

    rows: Tensor
    offsets: Tensor
    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None


def made(
    counts: list[int],
    dim: int = 3,
    hidden: int = 2,
    out: int = 4,
    *,
    tail: int = 0,
    bias: bool = True,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float64,
) -> Case:
    """``counts`` rows for each expert, and ``tail`` rows for nobody."""
    experts, wide = len(counts), 2 * hidden if ACTIVATIONS[activation].gated else hidden

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    return Case(
        draw(sum(counts) + tail, dim),
        torch.tensor(counts).cumsum(0).int(),
        draw(experts, dim, wide),
        draw(experts, wide) if bias else None,
        draw(experts, hidden, out),
        draw(experts, out) if bias else None,
    )


def naive(case: Case, activation: str) -> Tensor:
    """One row after the other; behind the last offset, zeros."""
    outputs, ends = [], case.offsets.tolist()
    for a, row in enumerate(case.rows):
        expert = next((e for e, end in enumerate(ends) if a < end), None)
        if expert is None:
            outputs.append(row.new_zeros(case.out_weight.shape[-1]))
            continue
        hidden = row @ case.in_weight[expert]
        if case.in_bias is not None:
            hidden = hidden + case.in_bias[expert]
        output = ACTIVATIONS[activation].forward(hidden) @ case.out_weight[expert]
        outputs.append(output if case.out_bias is None else output + case.out_bias[expert])
    return torch.stack(outputs) if outputs else case.rows.new_zeros(0, case.out_weight.shape[-1])


def gradients(case: Case, function: Any) -> list[Tensor]:
    """Of every operand with a gradient, for a random sum of the outputs."""
    leaves = [
        part if part is None or not part.is_floating_point() else part.detach().requires_grad_()
        for part in case
    ]
    output = function(Case(*leaves))
    draw = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    total = (output * draw).sum() + 0 * wanted[0].sum()  # where the loop had nothing to do
    return list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, str]:
    torch.manual_seed(draw(seeds))
    activation = draw(st.sampled_from(sorted(ACTIVATIONS)))
    case = made(
        draw(st.lists(st.integers(0, 4), min_size=1, max_size=5)),
        draw(sizes),
        draw(sizes),
        draw(sizes),
        tail=draw(st.integers(0, 3)),
        bias=draw(st.booleans()),
        activation=activation,
    )
    return case, activation


@both
@settings(max_examples=40)
@given(cases(), st.sampled_from([1, 3, 2048]))
def test_each_row_gets_its_expert(grouped: bool, drawn: tuple[Case, str], at_once: int) -> None:
    """However many rows are computed at once."""
    case, activation = drawn

    def rows(part: Case) -> Tensor:
        return expert_rows(*part, activation=activation, grouped=grouped)

    with mock.patch("mmfuse._expert_loop._ROWS_AT_ONCE", at_once):
        torch.testing.assert_close(rows(case), naive(case, activation))
        got = gradients(case, rows)
    torch.testing.assert_close(got, gradients(case, lambda part: naive(part, activation)))


@both
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_widths_that_one_call_takes_give_the_same_numbers(
    grouped: bool, bias: bool, dtype: torch.dtype, activation: str
) -> None:
    torch.manual_seed(0)
    case = made([5, 0, 9, 1], 8, 16, 8, tail=2, bias=bias, activation=activation, dtype=dtype)

    double = Case(
        *(part if part is None or part.dtype == torch.int32 else part.double() for part in case)
    )

    def rows(part: Case) -> Tensor:
        return expert_rows(*part, activation=activation, grouped=grouped)

    got = [rows(case), *gradients(case, rows)]
    want = [naive(double, activation)]
    output = got[0]
    draw = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    leaves = [
        part if part is None or part.dtype == torch.int32 else part.requires_grad_()
        for part in double
    ]
    total = (naive(Case(*leaves), activation) * draw.double()).sum()
    floats = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    want += torch.autograd.grad(total, floats)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, true in zip(got, want, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - true).norm() <= tolerance * true.norm()


@both
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradcheck(grouped: bool, activation: str) -> None:
    case = made([2, 0, 1], 2, 2, 2, tail=1, activation=activation)
    floats = [part.requires_grad_() for part in case if part.dtype != torch.int32]

    def function(rows: Tensor, *weights: Tensor) -> Tensor:
        return expert_rows(rows, case.offsets, *weights, activation=activation, grouped=grouped)

    assert torch.autograd.gradcheck(function, floats)


@both
def test_an_idle_expert_gets_gradient_zero_and_the_others_do_not(grouped: bool) -> None:
    case = made([3, 0, 2], 4, 4, 4, dtype=torch.float32)
    of_rows, *of_weights = gradients(case, lambda part: expert_rows(*part, grouped=grouped))
    assert of_rows.all()
    for gradient in of_weights:
        assert not gradient[1].any()
        assert gradient[0].any()
        assert gradient[2].any()


@both
def test_rows_of_nobody_give_zeros_and_get_gradient_zero(grouped: bool) -> None:
    case = made([2, 1], 4, 4, 4, tail=3, dtype=torch.float32)
    case.rows[3:] = torch.nan
    output = expert_rows(*case, grouped=grouped)
    assert_same(output[3:], torch.zeros(3, 4))
    clean = case._replace(rows=case.rows.nan_to_num(0.0))
    assert_same(output, expert_rows(*clean, grouped=grouped))
    got = gradients(case, lambda part: expert_rows(*part, grouped=grouped))
    assert_same(got, gradients(clean, lambda part: expert_rows(*part, grouped=grouped)))
    assert not got[0][3:].any()
    assert got[0][:3].any()


@both
@pytest.mark.parametrize("tail", [0, 3])
def test_where_no_expert_has_rows_everything_is_zero(grouped: bool, tail: int) -> None:
    case = made([0, 0], 4, 4, 4, tail=tail, dtype=torch.float32)
    assert_same(expert_rows(*case, grouped=grouped), torch.zeros(tail, 4))
    for gradient in gradients(case, lambda part: expert_rows(*part, grouped=grouped)):
        assert_same(gradient, torch.zeros_like(gradient))


@both
def test_operands_may_lie_in_memory_as_they_like(grouped: bool) -> None:
    case = made([3, 2], 4, 4, 4, dtype=torch.float32)
    other = Case(
        case.rows.T.contiguous().T,
        case.offsets,
        case.in_weight.mT.contiguous().mT,
        case.in_bias.T.contiguous().T,
        case.out_weight.movedim(0, -1).contiguous().movedim(-1, 0),
        case.out_bias.repeat_interleave(2, -1)[:, ::2],
    )
    assert not any(part.is_contiguous() for part in other[2:])

    def rows(part: Case) -> Tensor:
        return expert_rows(*part, grouped=grouped)

    assert_same(rows(other), rows(case))
    assert_same(gradients(other, rows), gradients(case, rows))


@both
def test_a_second_derivative_is_refused_not_wrong(grouped: bool) -> None:
    case = made([2, 1])
    rows = case.rows.requires_grad_()
    output = expert_rows(*case, grouped=grouped)
    (gradient,) = torch.autograd.grad(output.sum(), rows, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula|does not require grad"):
        torch.autograd.grad(gradient.square().sum(), rows)


@both
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("activation", ["gelu", "reglu"])
def test_the_operator_keeps_the_rules_of_torch(grouped: bool, bias: bool, activation: str) -> None:
    case = made([2, 0, 3], 4, 4, 8, tail=1, bias=bias, activation=activation, dtype=torch.float32)
    leaves = [
        part if part is None or part.dtype == torch.int32 else part.requires_grad_()
        for part in case
    ]
    operator = torch.ops.mmfuse.expert_rows.default
    results = torch.library.opcheck(operator, (*leaves, activation, grouped))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("grouped", "dtype", "width", "calls"),
    [
        (True, torch.float32, 4, 2),
        (True, torch.float32, 6, 0),  # strides of 24 bytes
        (True, torch.bfloat16, 4, 0),  # strides of 8 bytes
        (True, torch.float64, 4, 0),
        (False, torch.float32, 4, 0),
        (None, torch.float32, 4, 0),  # on the CPU the loop is faster
    ],
)
def test_one_call_computes_all_products_where_asked_and_possible(
    grouped: bool | None, dtype: torch.dtype, width: int, calls: int
) -> None:
    case = made([2, 1], 4, width, 4, dtype=dtype)
    with mock.patch("torch.nn.functional.grouped_mm", wraps=F.grouped_mm) as product:
        expert_rows(*case, grouped=grouped)
    assert product.call_count == calls


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation": "x"}, r"Expected activation to be one of 'gelu', .*'swiglu', got 'x'\."),
        ({"rows": torch.zeros(3, 2)}, r"Expected rows of shape \(A, 3\), got \(3, 2\)\."),
        ({"offsets": torch.zeros(3)}, r"Expected offsets of shape \(2,\), got \(3,\)\."),
        ({"in_bias": torch.zeros(2, 3)}, r"Expected in_bias of shape \(2, 2\), got \(2, 3\)\."),
        (
            {"out_weight": torch.zeros(2, 3, 4)},
            r"Expected out_weight of shape \(2, 2, O\), got \(2, 3, 4\)\.",
        ),
        (
            {"activation": "swiglu"},
            r"Expected out_weight of shape \(2, 1, O\), got \(2, 2, 4\)\.",
        ),
        ({"out_bias": torch.zeros(2, 3)}, r"Expected out_bias of shape \(2, 4\), got \(2, 3\)\."),
    ],
)
def test_rejects_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expert_rows(**{**made([1, 2])._asdict(), **changed})
