"""Every expert on its own rows: one operator, whatever the sizes are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfuse import _expert_groups, _expert_loop
from mmfuse._activation import ACTIVATIONS
from mmfuse._checks import check_choice, check_shape

__all__ = ["expert_rows"]


def expert_rows(  # noqa: PLR0917 - the layers in their order, as in torch.nn.functional
    rows: Tensor,  # (A, D)
    offsets: Tensor,  # (E,)
    in_weight: Tensor,  # (E, D, F) or (E, D, 2F)
    in_bias: Tensor | None,  # (E, F) or (E, 2F)
    out_weight: Tensor,  # (E, F, O)
    out_bias: Tensor | None,  # (E, O)
    *,
    activation: str = "gelu",
    grouped: bool | None = None,
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

    Two ways give the same numbers: one product an expert, through blocks of rows that stay in the
    cache; or :func:`torch.nn.functional.grouped_mm` for the products of all experts, which never
    waits for the offsets. The second needs float32 or half precision and widths of whole 16 bytes;
    for anything else the first steps in.

    Args:
        rows: Rows sorted by expert.
        offsets: Where the rows of each expert end.
        in_weight: First layers; twice as wide for a gated activation, the gate's half first.
        in_bias: Their biases.
        out_weight: Second layers.
        out_bias: Their biases.
        activation: One of ``"gelu"``, ``"relu"``, ``"silu"``, ``"geglu"``, ``"reglu"``,
            ``"swiglu"``.
        grouped: Whether to compute the products of all experts in one call; ``None`` means not on
            the CPU, where it was never faster.

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
        rows.device.type != "cpu" if grouped is None else grouped,
    )
    return output


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
    operands = rows, offsets, in_weight, in_bias, out_weight, out_bias, ACTIVATIONS[activation]
    if grouped and _expert_groups.takes(rows, in_weight, out_weight):
        return _expert_groups.forward(*operands)
    return _expert_loop.forward(*operands)


@_forward.register_fake
def _(rows: Tensor, offsets: Tensor, in_weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    out_weight = others[1]
    return (
        rows.new_empty(rows.shape[0], out_weight.shape[-1]),
        rows.new_empty(rows.shape[0], in_weight.shape[-1]),
    )


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
    operands = gradient, hidden, rows, offsets, in_weight, out_weight, phi
    if grouped and _expert_groups.takes(rows, in_weight, out_weight):
        return _expert_groups.backward(*operands)
    return _expert_loop.backward(*operands)


@_backward.register_fake
def _(  # noqa: PLR0917 - as above
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
    ctx.set_materialize_grads(False)  # no zeros for the hidden layer, which nobody else sees


def _gradients(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    of_rows, of_in, of_in_bias, of_out, of_out_bias = _backward(
        gradient.contiguous(), *ctx.saved_tensors, *ctx.options
    )
    of_in_bias = of_in_bias if ctx.biased[0] else None
    of_out_bias = of_out_bias if ctx.biased[1] else None
    return of_rows, None, of_in, of_in_bias, of_out, of_out_bias, None, None


_forward.register_autograd(_gradients, setup_context=_setup)
