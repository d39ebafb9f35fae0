"""What contrastive losses share: rows that do not count, sums over some entries, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from mmfuse._checks import (
    check_choice,
    check_floating,
    check_positive,
    check_shape,
    check_whole,
    reads_values,
)
from mmfuse._precision import unit

__all__ = [
    "UNKNOWN",
    "Reduction",
    "as_rows",
    "both_observed",
    "check_ids",
    "check_info_nce",
    "check_pairs",
    "check_reduction",
    "check_temperature",
    "chosen_pairs",
    "masked_log_sum",
    "masked_unit",
    "reduce_rows",
    "same_ids",
]

Reduction = Literal["mean", "sum", "none"]
UNKNOWN = -100  # the id of what nobody knows: it is nobody else's


def check_reduction(reduction: str) -> None:
    """Demand one of the three reductions."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))


def check_info_nce(
    temperature: float | Tensor,
    reduction: str,
    similarity: str,
    same_id: str,
    chunk_size: int | str | None,
) -> None:
    """Demand options within their range."""
    check_temperature(temperature)
    check_reduction(reduction)
    check_choice("similarity", similarity, ("cosine", "dot"))
    check_choice("same_id", same_id, ("ignore", "positive"))
    if isinstance(chunk_size, str):
        check_choice("chunk_size", chunk_size, ("auto",))
    elif chunk_size is not None:
        check_whole(chunk_size=chunk_size)


def check_temperature(temperature: float | Tensor) -> None:
    """Demand a number above zero, or a tensor of one, read where that costs nothing."""
    if not isinstance(temperature, Tensor):
        check_positive(temperature=temperature)
        return
    if temperature.numel() != 1:
        got = tuple(temperature.shape)
        raise ValueError(f"Expected temperature of one element, got shape {got}.")
    check_floating("temperature", temperature)
    if reads_values(temperature):
        check_positive(temperature=temperature.item())


def same_ids(
    rows: Tensor,  # (B,)
    columns: Tensor,  # (N,) or (B, N)
) -> Tensor:  # (B, N)
    """Where the ids are the same; an unknown one is nobody's."""
    return as_rows(rows).unsqueeze(1) == columns


def as_rows(ids: Tensor) -> Tensor:
    """The same ids, but unknown ones are equal to those of no column."""
    return ids.masked_fill(ids == UNKNOWN, torch.iinfo(ids.dtype).min)


def check_ids(name: str, ids: Tensor, *shape: int | str) -> None:
    """Demand whole numbers of this shape."""
    check_shape(name, ids, *shape, leading=False)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"Expected {name} of an integer dtype, got {ids.dtype}.")


def masked_unit(
    vectors: Tensor,  # (..., D)
    there: Tensor | None,  # (...)
    dtype: torch.dtype,
) -> Tensor:  # (..., D)
    """Vectors of length 1, of zeros where nothing is there."""
    wide = vectors.to(dtype)
    if there is not None:
        wide = torch.where(there.unsqueeze(-1), wide, torch.zeros_like(wide))
    return unit(wide)


def masked_log_sum(
    logits: Tensor,  # (..., N)
    mask: Tensor,  # (..., N)
) -> Tensor:  # (...)
    """The logarithm of the summed exponentials where the mask is true; zero where it never is.

    The logits are already divided by their temperature: behind the mask a division would turn
    minus infinity into a gradient that is no number.
    """
    some = mask.any(-1, keepdim=True)
    kept = logits.masked_fill(~mask, -torch.inf).masked_fill(~some, 0.0)
    summed = kept.logsumexp(-1)
    return torch.where(some.squeeze(-1), summed, torch.zeros_like(summed))


def reduce_rows(losses: Tensor, counts: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce the rows that count; zero, with its graph, where none does."""
    if counts is not None:
        losses = torch.where(counts, losses, torch.zeros_like(losses))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if counts is None:
        return losses.sum() / max(losses.numel(), 1)
    return losses.sum() / counts.sum().clamp(min=1)


def check_pairs(pairs: Sequence[tuple[int, int]] | None) -> None:
    """Demand pairs of two different modalities; ``None`` stands for all."""
    given: Any = pairs  # of whatever type
    for pair in given or ():
        indices = list(pair) if isinstance(pair, Sequence) else []
        whole = all(isinstance(index, int) and index >= 0 for index in indices)
        if len(indices) != 2 or not whole or indices[0] == indices[1]:
            raise ValueError(f"Expected pairs of two different modalities, got {pair}.")


def chosen_pairs(
    pairs: Sequence[tuple[int, int]] | None, num_modalities: int
) -> Sequence[tuple[int, int]]:
    """The pairs, or all there are; each within the modalities."""
    if pairs is None:
        return tuple(combinations(range(num_modalities), 2))
    largest = max([-1, *(index for pair in pairs for index in pair)])
    if largest >= num_modalities:
        raise ValueError(
            f"Expected streams of at least {largest + 1} modalities for pairs {tuple(pairs)}, "
            f"got {num_modalities}."
        )
    return pairs


def both_observed(
    present: Tensor | None,  # (..., M)
    valid: Tensor | None,  # (...)
    m: int,
    n: int,
) -> Tensor | None:  # (...)
    """Where both modalities are observed; ``None`` where nothing is missing."""
    if present is None:
        return valid
    both = present[..., m] & present[..., n]
    return both if valid is None else both & valid
