"""One product an expert, through blocks of rows that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmfuse._activation import Activation

__all__ = ["backward", "forward"]

_ROWS_AT_ONCE = 2048  # hidden activations of so many rows stay in the cache between operations


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
    output = rows.new_empty(rows.shape[0], out_weight.shape[-1])
    hidden = rows.new_empty(rows.shape[0], in_weight.shape[-1])
    ends = offsets.tolist()
    for tensor in (output, hidden):
        tensor[ends[-1] :] = 0
    for block in _blocks(ends):
        of, sizes, inside = block.experts, block.sizes, hidden[block.rows]
        _linear(rows[block.rows], sizes, in_weight[of], _part(in_bias, of), out=inside)
        active = phi.forward(inside)
        _linear(active, sizes, out_weight[of], _part(out_bias, of), out=output[block.rows])
    return output, hidden


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
    of_rows, of_in, of_out = map(torch.empty_like, (rows, in_weight, out_weight))
    of_in_bias, of_out_bias = (w.new_empty(len(w), w.shape[-1]) for w in (in_weight, out_weight))
    ends = offsets.tolist()
    of_rows[ends[-1] :] = 0
    for block in _blocks(ends):
        of, sizes = block.experts, block.sizes
        above, inside, below = gradient[block.rows], hidden[block.rows], rows[block.rows]
        active = phi.forward(inside)
        _outer(active, above, sizes, out=of_out[of])
        _sums(above, sizes, out=of_out_bias[of])
        _linear(above, sizes, out_weight[of].mT, out=active)
        above = phi.backward(active, inside)
        _outer(below, above, sizes, out=of_in[of])
        _sums(above, sizes, out=of_in_bias[of])
        _linear(above, sizes, in_weight[of].mT, out=of_rows[block.rows])
    return of_rows, of_in, of_in_bias, of_out, of_out_bias


class _Block(NamedTuple):
    """Some neighbouring experts and their rows."""

    experts: slice
    rows: slice
    sizes: list[int]  # rows of each of the experts


def _blocks(ends: list[int]) -> Iterator[_Block]:
    """As many experts as keep their rows in the cache, one at least."""
    bounds = [0, *ends]
    first = 0
    for last in range(1, len(bounds)):
        start, stop = bounds[first], bounds[last]
        if last == len(ends) or bounds[last + 1] - start > _ROWS_AT_ONCE:
            sizes = [bounds[e + 1] - bounds[e] for e in range(first, last)]
            yield _Block(slice(first, last), slice(start, stop), sizes)
            first = last


def _part(bias: Tensor | None, experts: slice) -> Tensor | None:
    return None if bias is None else bias[experts]


def _linear(
    x: Tensor,  # (n, A)
    sizes: list[int],
    weight: Tensor,  # (e, A, B)
    bias: Tensor | None = None,  # (e, B)
    *,
    out: Tensor,  # (n, B)
) -> None:
    parts = zip(x.split(sizes), weight, out.split(sizes), strict=True)
    if bias is None:
        for part, w, y in parts:
            torch.mm(part, w, out=y)
    else:
        for (part, w, y), b in zip(parts, bias, strict=True):
            torch.addmm(b, part, w, out=y)


def _outer(
    x: Tensor,  # (n, A)
    y: Tensor,  # (n, B)
    sizes: list[int],
    *,
    out: Tensor,  # (e, A, B)
) -> None:
    for a, b, product in zip(x.mT.split(sizes, 1), y.split(sizes), out, strict=True):
        torch.mm(a, b, out=product)


def _sums(
    y: Tensor,  # (n, B)
    sizes: list[int],
    *,
    out: Tensor,  # (e, B)
) -> None:
    for part, total in zip(y.split(sizes), out, strict=True):
        torch.sum(part, 0, out=total)
