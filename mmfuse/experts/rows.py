"""Every expert on its own rows: one operator, whatever the sizes are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._activation import ACTIVATIONS
from mmfuse._checks import check_choice, check_shape

__all__ = ["expert_rows"]

_ROWS_AT_ONCE = 2048  # hidden activations of so many rows stay in the cache between operations


def expert_rows(  # noqa: PLR0917 - the layers in their order, as in torch.nn.functional
    rows: Tensor,  # (A, D)
    offsets: Tensor,  # (E,)
    in_weight: Tensor,  # (E, D, F) or (E, D, 2F)
    in_bias: Tensor | None,  # (E, F) or (E, 2F)
    out_weight: Tensor,  # (E, F, O)
    out_bias: Tensor | None,  # (E, O)
    *,
    activation: str = "gelu",
    grouped: bool = True,
) -> Tensor:  # (A, O)
    r"""Apply to each row the expert that it is sorted to.

    .. math::
        \mathbf{y}_a = \phi(\mathbf{r}_a \mathbf{W}_{1,e} + \mathbf{b}_{1,e}) \mathbf{W}_{2,e}
        + \mathbf{b}_{2,e} \qquad \text{for} \quad
        \text{offsets}_{e-1} \le a < \text{offsets}_e

    A registered operator of torch: :func:`torch.compile` and :func:`torch.export.export` take it
    as a whole, for any number of rows an expert. Rows behind the last offset belong to nobody and
    give zeros. Experts without rows get gradient zero. Memory: beside inputs and outputs, the
    hidden layer once, for the backward pass. Differentiable once.

    ``grouped`` asks for :func:`torch.nn.functional.grouped_mm` where it takes the dtype and the
    widths; elsewhere, and without it, one product an expert gives the same numbers.

    Args:
        rows: Rows sorted by expert.
        offsets: Where the rows of each expert end.
        in_weight: First layers; twice as wide for a gated activation, the gate's half first.
        in_bias: Their biases.
        out_weight: Second layers.
        out_bias: Their biases.
        activation: One of ``"gelu"``, ``"relu"``, ``"silu"``, ``"geglu"``, ``"reglu"``,
            ``"swiglu"``.
        grouped: Whether one call may compute the products of several experts.

    Shape:
        - rows: :math:`(A, D)`
        - offsets: :math:`(E)`, int32, not decreasing
        - in_weight: :math:`(E, D, F)`, or :math:`(E, D, 2F)` if gated
        - in_bias: :math:`(E, F)`, or :math:`(E, 2F)` if gated
        - out_weight: :math:`(E, F, O)`
        - out_bias: :math:`(E, O)`
        - output: :math:`(A, O)`

    Returns:
        One output a row.

    Raises:
        ValueError: If the activation is unknown, or shapes disagree.

    Example:
        >>> eye = torch.eye(2).expand(2, 2, 2)
        >>> scale = torch.tensor([1.0, 10.0]).view(2, 1, 1)
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> offsets = torch.tensor([1, 2], dtype=torch.int32)  # a row each
        >>> expert_rows(rows, offsets, eye, None, eye * scale, None, activation="relu")
        tensor([[ 1.,  2.],
                [30., 40.]])
    """
    check_choice("activation", activation, ACTIVATIONS)
    num_experts, dim, wide = in_weight.shape
    hidden = wide // 2 if ACTIVATIONS[activation].gated else wide
    check_shape("rows", rows, "A", dim, leading=False)
    check_shape("offsets", offsets, num_experts, leading=False)
    check_shape("out_weight", out_weight, num_experts, hidden, "O", leading=False)
    if in_bias is not None:
        check_shape("in_bias", in_bias, num_experts, wide, leading=False)
    if out_bias is not None:
        check_shape("out_bias", out_bias, num_experts, out_weight.shape[-1], leading=False)
    output: Tensor
    output, _ = _forward(
        rows.contiguous(),
        offsets,
        in_weight.contiguous(),
        in_bias,
        out_weight.contiguous(),
        out_bias,
        activation,
        grouped,
    )
    return output


class _Block(NamedTuple):
    """Some neighbouring experts and their rows."""

    experts: slice
    rows: slice
    sizes: list[int]  # rows of each of the experts
    ends: Tensor  # where they end, counted from the first row of the block


def _blocks(offsets: Tensor, ends: list[int]) -> Iterator[_Block]:
    """Few enough rows for the cache, many enough experts for one call."""
    first = 0
    for last in range(1, len(ends)):
        full = last + 1 == len(ends) or ends[last + 1] - ends[first] > _ROWS_AT_ONCE
        if full:
            sizes = [b - a for a, b in zip(ends[first:last], ends[first + 1 :], strict=False)]
            experts, rows = slice(first, last), slice(ends[first], ends[last])
            yield _Block(experts, rows, sizes, offsets[experts] - ends[first])
            first = last


@torch.library.custom_op("mmfuse::expert_rows", mutates_args=())
def _forward(  # noqa: PLR0917 - a registered operator takes everything by position
    rows: Tensor,
    offsets: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    activation: str,
    grouped: bool,
) -> tuple[Tensor, Tensor]:
    phi = ACTIVATIONS[activation].forward
    output = rows.new_empty(rows.shape[0], out_weight.shape[-1])
    hidden = rows.new_empty(rows.shape[0], in_weight.shape[-1])
    ends = [0, *offsets.tolist()]
    for tensor in (output, hidden):
        tensor[ends[-1] :] = 0
    for block in _blocks(offsets, ends):
        of = block.experts
        part = hidden[block.rows]
        part.copy_(_linear(rows[block.rows], in_weight[of], in_bias, block, grouped))
        output[block.rows] = _linear(phi(part), out_weight[of], out_bias, block, grouped)
    return output, hidden


@torch.library.custom_op("mmfuse::expert_rows_backward", mutates_args=())
def _backward(  # noqa: PLR0917 - as above
    gradient: Tensor,
    hidden: Tensor,
    rows: Tensor,
    offsets: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    activation: str,
    grouped: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    phi = ACTIVATIONS[activation]
    of_rows, of_in, of_in_bias, of_out, of_out_bias = _empty_gradients(
        gradient, hidden, rows, offsets, in_weight, out_weight, activation, grouped
    )
    ends = [0, *offsets.tolist()]
    of_rows[ends[-1] :] = 0
    for block in _blocks(offsets, ends):
        of = block.experts
        above, inside, below = gradient[block.rows], hidden[block.rows], rows[block.rows]
        of_out[of] = _outer(phi.forward(inside), above, block, grouped)
        _sums(above, block, of_out_bias)
        above = phi.backward(_linear(above, out_weight[of].mT, None, block, grouped), inside)
        of_in[of] = _outer(below, above, block, grouped)
        _sums(above, block, of_in_bias)
        of_rows[block.rows] = _linear(above, in_weight[of].mT, None, block, grouped)
    return of_rows, of_in, of_in_bias, of_out, of_out_bias


@_forward.register_fake
def _(rows: Tensor, offsets: Tensor, in_weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    out_weight = others[1]
    return (
        rows.new_empty(rows.shape[0], out_weight.shape[-1]),
        rows.new_empty(rows.shape[0], in_weight.shape[-1]),
    )


@_backward.register_fake
def _empty_gradients(  # noqa: PLR0917 - as above
    gradient: Tensor,
    hidden: Tensor,
    rows: Tensor,
    offsets: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    activation: str,
    grouped: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(rows),
        torch.empty_like(in_weight),
        in_weight.new_empty(in_weight.shape[0], in_weight.shape[-1]),
        torch.empty_like(out_weight),
        out_weight.new_empty(out_weight.shape[0], out_weight.shape[-1]),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, offsets, in_weight, in_bias, out_weight, out_bias, activation, grouped = inputs
    ctx.save_for_backward(output[1], rows, offsets, in_weight, out_weight)
    ctx.options = activation, grouped
    ctx.biased = in_bias is not None, out_bias is not None


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    of_rows, of_in, of_in_bias, of_out, of_out_bias = _backward(
        gradient.contiguous(), *ctx.saved_tensors, *ctx.options
    )
    of_in_bias = of_in_bias if ctx.biased[0] else None
    of_out_bias = of_out_bias if ctx.biased[1] else None
    return of_rows, None, of_in, of_in_bias, of_out, of_out_bias, None, None


_forward.register_autograd(_gradients, setup_context=_setup)


def _linear(
    x: Tensor,  # (n, A)
    weight: Tensor,  # (e, A, B)
    bias: Tensor | None,  # (E, B)
    block: _Block,
    grouped: bool,
) -> Tensor:  # (n, B)
    if len(block.sizes) == 1:
        one = weight[0]
        return x @ one if bias is None else torch.addmm(bias[block.experts][0], x, one)
    if grouped and _takes(x, weight):
        y = F.grouped_mm(x, weight, offs=block.ends)
    else:
        y = x.new_empty(x.shape[0], weight.shape[-1])
        for part, w, out in zip(x.split(block.sizes), weight, y.split(block.sizes), strict=True):
            torch.mm(part, w, out=out)
    if bias is not None:
        for part, b in zip(y.split(block.sizes), bias[block.experts], strict=True):
            part.add_(b)
    return y


def _outer(
    x: Tensor,  # (n, A)
    y: Tensor,  # (n, B)
    block: _Block,
    grouped: bool,
) -> Tensor:  # (e, A, B)
    if len(block.sizes) == 1:
        return (x.mT @ y).unsqueeze(0)
    if grouped and _takes(x, y):
        return F.grouped_mm(x.mT, y, offs=block.ends)
    pairs = zip(x.split(block.sizes), y.split(block.sizes), strict=True)
    return torch.stack([a.mT @ b for a, b in pairs])


def _sums(y: Tensor, block: _Block, sums: Tensor) -> None:
    for part, out in zip(y.split(block.sizes), sums[block.experts], strict=True):
        torch.sum(part, 0, out=out)


def _takes(*factors: Tensor) -> bool:
    """Whether grouped_mm takes them: no float64, strides of 16 bytes, bfloat16 off the CPU."""
    if not hasattr(F, "grouped_mm"):  # torch before 2.10
        return False
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    dtype, device = factors[0].dtype, factors[0].device.type
    bytes_of = factors[0].element_size()
    fits = all(n * bytes_of % 16 == 0 for factor in factors for n in factor.shape[-2:][-1:])
    legal = dtype in (dtypes if device == "cpu" else dtypes[:1])
    strides = all(max(factor.stride()[-2:]) * bytes_of % 16 == 0 for factor in factors)
    return legal and fits and strides
