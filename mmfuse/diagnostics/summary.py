"""Contributions of many rows in a few numbers: shares, and means by category."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfuse._checks import check_index, check_mask, check_positive, check_shape
from mmfuse._precision import at_least_float32
from mmfuse.gating import UNKNOWN
from mmfuse.layers import mask_absent

__all__ = ["contribution_shares", "CategoryContributions", "contributions_by_category"]


def contribution_shares(
    contributions: Tensor,  # (..., M)
    present: Tensor | None = None,  # (..., M)
) -> Tensor:  # (..., M)
    r"""The share of each modality in what all of them contribute, whatever the sign.

    .. math::
        q_m = \frac{|c_m|}{\sum_j |c_j|}

    Args:
        contributions: Contributions :math:`c`.
        present: Boolean, true where observed; ``None`` means everywhere.

    Shape:
        - contributions, present, output: :math:`(\ldots, M)`

    Returns:
        Shares that sum to one, or to zero where nothing contributes; in float32 at least.

    Raises:
        ValueError: If ``present`` does not fit the contributions.

    Example:
        >>> contribution_shares(torch.tensor([[3.0, -1.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.0000, 0.0000]])
    """
    size = _counted(contributions, present)[0].abs()
    total = size.sum(-1, keepdim=True)
    return size / torch.where(total == 0, torch.ones_like(total), total)


class CategoryContributions(NamedTuple):
    r"""Contributions of modalities, summed up by category.

    .. math::
        \sigma_{cm} = \sqrt{\frac{1}{n_{cm} - 1} \sum_{t : c \in C_t} p_{tm}
        \left( c_{tm} - \mu_{cm} \right)^2}

    in the letters of :func:`contributions_by_category`.

    Args:
        mean: Means :math:`\mu`, zero where nothing is counted.
        std: Standard deviations :math:`\sigma`, zero where fewer than two are counted.
        counts: How many contributions :math:`n` are in the mean, int64.

    Shape:
        - mean, std, counts, the output of :func:`contributions_by_category`: :math:`(C, M)`

    Raises:
        AttributeError: If a field is assigned to.

    Example:
        >>> mean, std, counts = contributions_by_category(
        ...     torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), num_categories=1
        ... )
        >>> std
        tensor([[1.4142]])
    """

    mean: Tensor
    std: Tensor
    counts: Tensor


def contributions_by_category(
    contributions: Tensor,  # (..., M)
    categories: Tensor,  # (...) or (..., C)
    num_categories: int,
    present: Tensor | None = None,  # (..., M)
    valid: Tensor | None = None,  # (...)
) -> CategoryContributions:
    r"""Mean contribution of each modality in each category.

    .. math::
        \mu_{cm} = \frac{1}{n_{cm}} \sum_{t : c \in C_t} p_{tm} \, c_{tm}, \qquad
        n_{cm} = \sum_{t : c \in C_t} p_{tm}

    over the valid rows :math:`t`, where :math:`C_t` holds the categories of a row and
    :math:`p_{tm}` tells whether modality :math:`m` was observed there. An absent modality is left
    out of the mean: the mean says what a modality contributes where it is there, the count how
    often that is. Without ``present`` every contribution counts, zeros of absent modalities too;
    without ``valid``, padding does.

    Args:
        contributions: Contributions, or their shares.
        categories: As a gate takes them: one category a row, int64, -100 where unknown, or
            multi-hot, all zero where unknown; a row counts for each of its categories.
        num_categories: Number :math:`C` of categories.
        present: Boolean, true where observed; ``None`` means everywhere.
        valid: Boolean, false at padding, whatever category that has; ``None`` means all rows.

    Shape:
        - contributions, present: :math:`(\ldots, M)`; valid: :math:`(\ldots)`
        - categories: :math:`(\ldots)`, or :math:`(\ldots, C)` multi-hot

    Returns:
        :class:`CategoryContributions`, each :math:`(C, M)`, in float32 at least.

    Raises:
        ValueError: If a number is not positive, or a shape, dtype or category does not fit.

    Example:
        >>> contributions = torch.tensor([[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]])
        >>> contributions_by_category(contributions, torch.tensor([0, 0, -100]), 1).mean
        tensor([[2., 2.]])
    """
    check_positive(num_categories=num_categories)
    values, counted = _counted(contributions, present)
    rows, kinds = _members(categories, values.shape[:-1], num_categories, valid)
    values, counted = (part.reshape(-1, values.shape[-1])[rows] for part in (values, counted))

    def total(part: Tensor) -> Tensor:  # (T, M) -> (C, M)
        return part.new_zeros(num_categories, part.shape[-1]).index_add(0, kinds, part)

    counts = total(counted.long())
    mean = total(values) / counts.clamp_min(1)
    square = (values - mean[kinds]).square().masked_fill(~counted, 0)
    std = (total(square) / (counts - 1).clamp_min(1)).sqrt()
    return CategoryContributions(mean, std, counts)


def _counted(contributions: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Contributions, zero where absent whatever they were, and what is not absent."""
    check_shape("contributions", contributions, "M")
    values = contributions.to(at_least_float32(contributions))
    if present is None:
        return values, torch.ones_like(values, dtype=torch.bool)
    check_mask("present", present, values.shape)
    return values.masked_fill(~present, 0), present


def _members(
    categories: Tensor, lead: torch.Size, num_categories: int, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every pair of a valid row and a category of its own."""
    if valid is not None:
        check_mask("valid", valid, lead)
    if categories.shape == (*lead, num_categories):
        member = mask_absent(categories != 0, valid)
        rows, kinds = member.reshape(-1, num_categories).nonzero().unbind(-1)
        return rows, kinds
    check_shape("categories", categories, *lead, leading=False)
    categories = categories if valid is None else categories.masked_fill(~valid, UNKNOWN)
    flat = categories.flatten()
    rows = (flat != UNKNOWN).nonzero().squeeze(-1)
    check_index("categories", flat[rows], "num_categories", num_categories, least=0)
    return rows, flat[rows].long()
