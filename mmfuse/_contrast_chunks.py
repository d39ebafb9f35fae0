"""The pairs of a contrastive loss in chunks of rows: one operator, whose memory is that of a chunk.

The logits of a chunk exist for the time of that chunk only; the backward pass makes them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfuse._precision import check_no_tangent, without_autocast

__all__ = ["Pairs", "in_chunks"]

# Logits that a chunk holds if nobody says how many rows: what stays in the cache of a CPU, and what
# keeps another device busy. Fewer rows than these would read all columns too often.
_ON_CPU, _ELSEWHERE, _ROWS = 2**19, 2**26, 64


class Pairs(NamedTuple):
    """Which row meets which column; ``None`` leaves nothing out."""

    row_ids: Tensor | None  # (n,)
    column_ids: Tensor | None  # (m,)
    row_valid: Tensor | None  # (n,)
    column_valid: Tensor | None  # (m,)
    own: int  # the column of the first row, which it does not meet; the next row's is the next
    positives: bool  # whether a column of the row's id is one more positive, or left out


def in_chunks(
    rows: Tensor,  # (n, D)
    columns: Tensor,  # (m, D)
    pairs: Pairs,
    *,
    both: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:  # (3, n), (3, m) or (3, 0)
    """The summaries of all rows, and of all columns if ``both``; ``None`` chooses a size."""
    check_no_tangent("A contrast in chunks", rows, columns)
    of_rows: Tensor
    of_columns: Tensor
    of_rows, of_columns = _forward(
        rows.contiguous(), columns.contiguous(), *pairs, both, chunk_size or 0
    )
    return of_rows, of_columns


def _chunks(rows: Tensor, columns: Tensor, chunk: int) -> tuple[range, Tensor]:
    """Where chunks start, and room for one."""
    n, m = len(rows), len(columns)
    most = _ON_CPU if rows.device.type == "cpu" else _ELSEWHERE
    size = max(1, min(n, chunk or max(_ROWS, most // max(m, 1))))
    return range(0, n, size), rows.new_empty(size, m)


def _chunk(
    rows: Tensor,  # (c, D)
    columns: Tensor,  # (m, D)
    pairs: Pairs,
    start: int,
    room: Tensor,  # (at least c, m)
) -> tuple[Tensor, Tensor | None]:  # (c, m), (c, m)
    """Logits of some rows, the lowest number where hidden; and where the ids are the same."""
    stop = start + len(rows)
    logits = torch.mm(rows, columns.mT, out=room[: len(rows)])
    lowest = torch.finfo(logits.dtype).min
    same = None
    if pairs.row_ids is not None and pairs.column_ids is not None:
        same = pairs.row_ids[start:stop].unsqueeze(1) == pairs.column_ids
        if not pairs.positives:
            logits.masked_fill_(same, lowest)
    if pairs.row_valid is not None:
        logits.masked_fill_(~pairs.row_valid[start:stop].unsqueeze(1), lowest)
    if pairs.column_valid is not None:
        logits.masked_fill_(~pairs.column_valid, lowest)
    if pairs.own >= 0:
        logits[:, pairs.own + start : pairs.own + stop].diagonal().fill_(lowest)
    if same is None or not pairs.positives:
        return logits, None
    return logits, same.logical_and_(logits > lowest)


@torch.library.custom_op("mmfuse::contrast", mutates_args=())
def _forward(  # noqa: PLR0917 - a registered operator takes everything by position
    rows: Tensor,
    columns: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_valid: Tensor | None,
    column_valid: Tensor | None,
    own: int,
    positives: bool,
    both: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    pairs = Pairs(row_ids, column_ids, row_valid, column_valid, own, positives)
    of_rows = rows.new_zeros(3, len(rows))
    of_columns = rows.new_zeros(3, len(columns) if both else 0)
    highest = rows.new_full((of_columns.shape[1],), torch.finfo(rows.dtype).min)
    starts, room = _chunks(rows, columns, chunk)
    spare = torch.empty_like(room) if both else room
    if not len(columns):
        of_rows[0] = -torch.inf
        return of_rows, of_columns
    with without_autocast(rows.device):
        for start in starts:
            part = slice(start, start + len(room))
            logits, same = _chunk(rows[part], columns, pairs, start, room)
            if same is not None:
                added = logits.masked_fill(~same, 0)
                of_rows[1, part], of_rows[2, part] = added.sum(1), same.sum(1)
                if both:
                    of_columns[1] += added.sum(0)
                    of_columns[2] += same.sum(0)
            if both:
                higher = torch.maximum(highest, logits.amax(0))
                powers = torch.sub(logits, higher, out=spare[: len(logits)]).exp_()
                of_columns[0].mul_(highest.sub_(higher).exp_()).add_(powers.sum(0))
                highest = higher
            most = logits.amax(1, keepdim=True)
            of_rows[0, part] = logits.sub_(most).exp_().sum(1).log_().add_(most.squeeze(1))
    of_columns[0].log_().add_(highest)
    return of_rows, of_columns


@_forward.register_fake
def _(rows: Tensor, columns: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    both = others[6]
    return rows.new_empty(3, rows.shape[0]), rows.new_empty(3, columns.shape[0] if both else 0)


@torch.library.custom_op("mmfuse::contrast_backward", mutates_args=())
def _backward(  # noqa: PLR0917 - as above
    row_gradient: Tensor,
    column_gradient: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    rows: Tensor,
    columns: Tensor,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    row_valid: Tensor | None,
    column_valid: Tensor | None,
    own: int,
    positives: bool,
    both: bool,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    pairs = Pairs(row_ids, column_ids, row_valid, column_valid, own, positives)
    starts, room = _chunks(rows, columns, chunk)
    spare = torch.empty_like(room) if both else room
    row_powers, column_powers = _met(of_rows), _met(of_columns)
    to_rows, to_columns = torch.empty_like(rows), torch.zeros_like(columns)
    with without_autocast(rows.device):
        for start in starts:
            part = slice(start, start + len(room))
            logits, same = _chunk(rows[part], columns, pairs, start, room)
            if both:
                other = torch.sub(logits, column_powers, out=spare[: len(logits)])
                other.exp_().mul_(column_gradient[0])
            slope = logits.sub_(row_powers[part].unsqueeze(1)).exp_()
            slope.mul_(row_gradient[0, part].unsqueeze(1))
            if both:
                slope.add_(other)
            if same is not None:
                slope.add_(same * row_gradient[1, part].unsqueeze(1))
                if both:
                    slope.add_(same * column_gradient[1])
            torch.mm(slope, columns, out=to_rows[part])
            to_columns.addmm_(slope.mT, rows[part])
    return to_rows, to_columns


@_backward.register_fake
def _(*operands: Any) -> tuple[Tensor, Tensor]:
    rows, columns = operands[4:6]
    return torch.empty_like(rows), torch.empty_like(columns)


def _met(summary: Tensor) -> Tensor:
    """The first line; infinite, which no logit adds to, where a row has met nothing."""
    powers = summary[0]
    return powers.masked_fill(powers < torch.finfo(powers.dtype).min / 2, torch.inf)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:6])
    ctx.options = inputs[6:]


def _gradients(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Counts have none."""
    to_rows, to_columns = _backward(*gradients, *ctx.saved_tensors, *ctx.options)
    return to_rows, to_columns, *(None,) * 8


_forward.register_autograd(_gradients, setup_context=_setup)
