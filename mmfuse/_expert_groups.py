"""The products of all experts in one call, without a look at how many rows each of them has."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._activation import Activation

__all__ = ["backward", "forward", "takes"]

_WIDTH = 16  # bytes: what the rows of every factor must be a multiple of


def takes(rows: Tensor, in_weight: Tensor, out_weight: Tensor) -> bool:
    """Whether grouped_mm takes them; off the CPU it is fast in bfloat16 only."""
    half = (torch.bfloat16,)
    dtypes = (*half, torch.float16, torch.float32) if rows.device.type == "cpu" else half
    widths = rows.shape[-1], in_weight.shape[-1], *out_weight.shape[-2:]
    return (
        hasattr(F, "grouped_mm")  # since torch 2.10
        and rows.dtype in dtypes
        and rows.shape[0] > 0
        and all(width * rows.element_size() % _WIDTH == 0 for width in widths)
    )


def forward(  # noqa: PLR0917 - what the operator takes, in its order
    rows: Tensor,  # (A, D)
    offsets: Tensor,  # (E,)
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    phi: Activation,
) -> tuple[Tensor, Tensor]:  # (A, O), (A, F) or (A, 2F)
    """The outputs, and the hidden layer before its activation."""
    owner = _owner(rows, offsets)
    hidden = _linear(rows, offsets, in_weight, in_bias, owner)
    return _linear(phi.forward(hidden), offsets, out_weight, out_bias, owner), hidden


def backward(  # noqa: PLR0917 - as above
    gradient: Tensor,  # (A, O)
    hidden: Tensor,  # (A, F) or (A, 2F)
    rows: Tensor,  # (A, D)
    offsets: Tensor,  # (E,)
    in_weight: Tensor,
    out_weight: Tensor,
    phi: Activation,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of rows, first layers and their biases, second layers and their biases."""
    owner = _owner(rows, offsets)
    of_out = F.grouped_mm(phi.forward(hidden).mT, gradient, offs=offsets)
    inside = phi.backward(_linear(gradient, offsets, out_weight.mT, None, owner), hidden)
    of_in = F.grouped_mm(rows.mT, inside, offs=offsets)
    of_rows = _linear(inside, offsets, in_weight.mT, None, owner)
    return of_rows, of_in, _sums(inside, offsets), of_out, _sums(gradient, offsets)


def _owner(rows: Tensor, offsets: Tensor) -> Tensor:  # (A,)
    """The expert of each row; E is nobody."""
    places = torch.arange(rows.shape[0], device=rows.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets, places, right=True, out_int32=True)


def _linear(
    x: Tensor,  # (A, B)
    offsets: Tensor,  # (E,)
    weight: Tensor,  # (E, B, C)
    bias: Tensor | None,  # (E, C)
    owner: Tensor,  # (A,)
) -> Tensor:  # (A, C)
    """Zero for rows of nobody, which no expert writes."""
    y = F.grouped_mm(x, weight, offs=offsets)
    if bias is not None:
        y += bias.index_select(0, owner.clamp_max(len(bias) - 1))
    return y.masked_fill_((owner == len(weight)).unsqueeze(-1), 0)


def _sums(y: Tensor, offsets: Tensor) -> Tensor:  # (E, B)
    """Of the rows of each expert: a product with ones, since adding by index has no fixed order."""
    ones = y.new_ones(y.shape[0], _WIDTH // y.element_size())
    return F.grouped_mm(ones.mT, y, offs=offsets)[:, 0].contiguous()
