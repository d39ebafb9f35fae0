"""What a contrastive loss must know of the pairs: of each row, and of each column.

A summary, (3, n), holds for each row the log of the summed powers of its logits, the sum of the
logits of its own id, and how many these are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._checks import check_mask, check_shape, check_tensors
from mmfuse._contrast import as_rows, check_ids, masked_unit, same_ids
from mmfuse._contrast_chunks import Pairs, in_chunks
from mmfuse._processes import Processes, processes

__all__ = [
    "check_negatives",
    "from_summary",
    "in_batch",
    "prepare",
    "summaries",
    "to_explicit",
]

ChunkSize = int | str | None


def check_negatives(  # noqa: PLR0917 - in the order of the arguments
    query: Tensor,
    negative_keys: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_valid: Tensor | None,
    symmetric: bool,
) -> None:
    """Demand explicit negatives, or what goes without them."""
    if negative_keys is None:
        if key_ids is not None:
            check_ids("key_ids", key_ids, query.shape[0])
            if ids is None:
                raise ValueError("Expected ids with key_ids, got ids None.")
        if negative_valid is not None:
            raise ValueError("Expected negative_keys with negative_valid, got negative_keys None.")
        return
    check_tensors(negative_keys=negative_keys)
    lead = query.shape[:1] if negative_keys.ndim == 3 else ()
    check_shape("negative_keys", negative_keys, *lead, "N", query.shape[1], leading=False)
    if symmetric:
        raise ValueError("Expected symmetric=False with negative_keys, got symmetric=True.")
    if (ids is None) != (key_ids is None):
        given = ["None" if known is None else "given" for known in (ids, key_ids)]
        raise ValueError(
            "Expected ids and key_ids, or none of them, with negative_keys, "
            f"got ids {given[0]} and key_ids {given[1]}."
        )
    if key_ids is not None:
        check_ids("key_ids", key_ids, *negative_keys.shape[:-1])
    if negative_valid is not None:
        check_mask("negative_valid", negative_valid, negative_keys.shape[:-1])


def prepare(
    vectors: Tensor,  # (..., D)
    valid: Tensor | None,  # (...)
    dtype: torch.dtype,
    similarity: str,
) -> Tensor:  # (..., D)
    """Vectors whose product is the similarity, of zeros where not valid."""
    if similarity == "cosine":
        return masked_unit(vectors, valid, dtype)
    wide = vectors.to(dtype)
    if valid is None:
        return wide
    return torch.where(valid.unsqueeze(-1), wide, torch.zeros_like(wide))


def in_batch(
    query: Tensor,  # (B, D), over the temperature
    key: Tensor,  # (B, D)
    pairs: Pairs,
    *,
    those: Processes | None,
    symmetric: bool,
    chunk_size: ChunkSize,
) -> list[Tensor]:  # (3, B) each
    """Of each query, and of each key if ``symmetric``, the summary of all others of the batch."""
    if those is None:
        found = summaries(query, key, pairs, both=symmetric, chunk_size=chunk_size)
        return list(found) if symmetric else [found[0]]
    there = pairs._replace(
        column_ids=those.some_rows(pairs.column_ids),
        column_valid=those.some_rows(pairs.column_valid),
        own=those.start,
    )
    found = summaries(query, those.rows(key), there, both=False, chunk_size=chunk_size)
    if not symmetric:
        return [found[0]]
    back = there._replace(row_ids=pairs.column_ids, column_ids=those.some_rows(pairs.row_ids))
    again = summaries(key, those.rows(query), back, both=False, chunk_size=chunk_size)
    return [found[0], again[0]]


def to_explicit(
    query: Tensor,  # (B, D), over the temperature
    negatives: Tensor,  # (N, D) or (B, N, D)
    pairs: Pairs,
    *,
    gather: Any,
    chunk_size: ChunkSize,
) -> Tensor:  # (3, B)
    """Of each query the summary of its explicit negatives."""
    if negatives.ndim == 2:
        those = processes(gather, negatives)
        if those is not None:
            negatives = those.rows(negatives)
            pairs = pairs._replace(
                column_ids=those.some_rows(pairs.column_ids),
                column_valid=those.some_rows(pairs.column_valid),
            )
        return summaries(query, negatives, pairs, both=False, chunk_size=chunk_size)[0]
    logits = (negatives @ query.unsqueeze(-1)).squeeze(-1)
    return _summarise(logits, pairs, (1,))[0]


def from_summary(own: Tensor, summary: Tensor) -> Tensor:  # (B,)
    """The loss of each row, from the logit of its own positive and the summary of all others."""
    powers, added, number = summary.unbind(0)
    missed = F.softplus(powers - own, threshold=40)
    return missed + (number * own - added) / (1 + number)


def summaries(
    rows: Tensor,  # (n, D)
    columns: Tensor,  # (m, D)
    pairs: Pairs,
    *,
    both: bool,
    chunk_size: ChunkSize,
) -> tuple[Tensor, Tensor]:  # (3, n), (3, m) or (3, 0)
    """The summaries of all rows, and of all columns if ``both``."""
    if chunk_size is not None:
        size = None if isinstance(chunk_size, str) else chunk_size
        if pairs.row_ids is not None:
            pairs = pairs._replace(row_ids=as_rows(pairs.row_ids))
        return in_chunks(rows, columns, pairs, both=both, chunk_size=size)
    logits = rows @ columns.mT
    of_rows, *of_columns = _summarise(logits, pairs, (1, 0) if both else (1,))
    return of_rows, of_columns[0] if both else of_rows[:, :0]


def _summarise(
    logits: Tensor,  # (n, m)
    pairs: Pairs,
    dims: tuple[int, ...],
) -> list[Tensor]:  # (3, n) or (3, m) each
    """The summaries over these dimensions.

    What is hidden gets the lowest number, not minus infinity: then a row without any other has a
    sum of powers that is as good as zero, and no gradient that is not a number.
    """
    hidden, same = _masks(logits, pairs)
    seen = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
    found = []
    for dim in dims:
        powers = torch.logsumexp(seen, dim)
        added = number = torch.zeros_like(powers)
        if same is not None:
            added = torch.where(same, logits, torch.zeros_like(logits)).sum(dim)
            number = same.sum(dim).to(powers.dtype)
        found.append(torch.stack([powers, added, number]))
    return found


def _masks(logits: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor | None]:
    """What is hidden; and of the rest, if these are positives, where the ids are the same."""
    hidden = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    same = None
    if pairs.row_ids is not None and pairs.column_ids is not None:
        same = same_ids(pairs.row_ids, pairs.column_ids)
    if same is not None and not pairs.positives:
        hidden, same = hidden | same, None
    if pairs.row_valid is not None:
        hidden = hidden | ~pairs.row_valid.unsqueeze(1)
    if pairs.column_valid is not None:
        hidden = hidden | ~pairs.column_valid
    if pairs.own >= 0:
        n, m = logits.shape
        place = torch.arange(n, device=logits.device) + pairs.own
        hidden = hidden | (place.unsqueeze(1) == torch.arange(m, device=logits.device))
    return hidden, None if same is None else same & ~hidden
