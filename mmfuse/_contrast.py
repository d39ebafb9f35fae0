"""What contrastive losses share: rows that do not count, sums over some entries, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from mmfuse._checks import check_choice, check_floating, check_positive, check_shape
from mmfuse._precision import unit

__all__ = [
    "Reduction",
    "both_observed",
    "check_ids",
    "check_info_nce",
    "check_pairs",
    "check_reduction",
    "chosen_pairs",
    "masked_log_sum",
    "masked_unit",
    "reduce_rows",
]

Reduction = Literal["mean", "sum", "none"]


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
    if isinstance(temperature, Tensor):  # whose value is data
        if temperature.numel() != 1:
            got = tuple(temperature.shape)
            raise ValueError(f"Expected temperature of one element, got shape {got}.")
        check_floating("temperature", temperature)
    else:
        check_positive(temperature=temperature)
    check_reduction(reduction)
    check_choice("similarity", similarity, ("cosine", "dot"))
    check_choice("same_id", same_id, ("ignore", "positive"))
    if isinstance(chunk_size, str):
        check_choice("chunk_size", chunk_size, ("auto",))
    elif chunk_size is not None:
        check_positive(chunk_size=chunk_size)


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
    for pair in pairs or ():
        indices = list(pair)
        if len(indices) != 2 or indices[0] == indices[1] or min(indices) < 0:
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
