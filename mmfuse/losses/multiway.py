"""InfoNCE between every two of several modalities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_shape
from mmfuse._contrast import (
    Reduction,
    both_observed,
    check_info_nce,
    check_pairs,
    check_reduction,
    chosen_pairs,
)
from mmfuse._precision import at_least_float32
from mmfuse._processes import processes
from mmfuse.losses.info_nce import InfoNCELoss, SameId, Similarity, info_nce

__all__ = ["MultiwayInfoNCELoss", "multiway_info_nce"]

Pair = tuple[int, int]


def multiway_info_nce(
    streams: Tensor,  # (B, M, D)
    present: Tensor | None = None,  # (B, M)
    *,
    temperature: float | Tensor = 0.1,
    pairs: Sequence[Pair] | None = None,
    weights: Sequence[float] | None = None,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    valid: Tensor | None = None,  # (B,)
    symmetric: bool = True,
    similarity: Similarity = "cosine",
    same_id: SameId = "ignore",
    chunk_size: int | Literal["auto"] | None = None,
    gather: Any = False,
) -> Tensor:  # () or (P,)
    r"""InfoNCE over all pairs of modalities (:cite:`tian2020cmc`, the full graph).

    .. math::
        \mathcal{L} = \frac{\sum_{(m, n) \in \mathcal{O}} w_{mn} \, \mathrm{InfoNCE}(
        \mathbf{x}_{\cdot m}, \mathbf{x}_{\cdot n})}{\sum_{(m, n) \in \mathcal{O}} w_{mn}}

    where :math:`\mathcal{O}` are the pairs of which some valid row has both modalities. Each pair
    is an :func:`info_nce` over just those rows; a pair without one adds nothing, neither above nor
    below.

    Args:
        streams: One vector a row and modality.
        present: Boolean, true where observed; ``None`` means everywhere.
        temperature: Temperature of the InfoNCE; a tensor of one element may be learned.
        pairs: Pairs of modality indices, query first; ``None`` means all, smaller index first.
        weights: One weight a pair, not negative; ``None`` weighs all alike.
        reduction: ``"mean"`` over the pairs that have a row, the weighted ``"sum"``, or
            ``"none"``: one loss a pair, without its weight.
        ids: What each row is about; rows of one id are not each other's negatives, -100 is unknown.
        valid: Boolean; a row that is not valid takes part in no pair. Where no pair has a row the
            loss is zero and still part of the graph.
        symmetric: Whether each pair takes the mean of both directions.
        similarity: As in :func:`info_nce`, like all that follow.
        same_id: What rows of one id are to each other.
        chunk_size: Rows whose similarities exist at a time.
        gather: Whether the rows of all processes are one batch. A pair counts where any of them
            has a row of it.

    Shape:
        - streams: :math:`(B, M, D)`
        - present: :math:`(B, M)`
        - ids, valid: :math:`(B)`
        - output: scalar, or one loss for each of the :math:`P` pairs without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, an option of the InfoNCE is out of range, a pair is not one
            of two different modalities, or ``weights`` are negative or not one a pair.

    Example:
        >>> streams = torch.eye(2).unsqueeze(1).expand(2, 3, 2)  # three modalities that agree
        >>> multiway_info_nce(streams, temperature=1.0)
        tensor(0.3133)
        >>> multiway_info_nce(streams, temperature=1.0, reduction="none")
        tensor([0.3133, 0.3133, 0.3133])
    """
    check_info_nce(temperature, reduction, similarity, same_id, chunk_size)
    _check_pairs_and_weights(pairs, weights)
    contrast = partial(
        info_nce,
        temperature=temperature,
        symmetric=symmetric,
        similarity=similarity,
        same_id=same_id,
        chunk_size=chunk_size,
        gather=gather,
    )
    losses, count = _each_pair(streams, present, ids, valid, contrast, pairs, gather)
    return _over_pairs(losses, count > 0, weights, reduction)


class MultiwayInfoNCELoss(nn.Module):
    r"""InfoNCE over all pairs of modalities, as a module; see :func:`multiway_info_nce`.

    .. math::
        \mathcal{L} = \frac{\sum_{(m, n)} w_{mn} \, \mathrm{InfoNCE}(
        \mathbf{x}_{\cdot m}, \mathbf{x}_{\cdot n})}{\sum_{(m, n)} w_{mn}}

    Args:
        temperature: Temperature of the InfoNCE, or a module that returns it.
        pairs: Pairs of modality indices, query first; ``None`` means all, smaller index first.
        weights: One weight a pair, not negative; ``None`` weighs all alike.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over the pairs.
        symmetric: Whether each pair takes the mean of both directions.
        similarity: ``"cosine"`` or ``"dot"``.
        same_id: Whether keys of the row's id are left out, ``"ignore"``, or ``"positive"``.
        chunk_size: Rows in a chunk, ``"auto"``, or ``None`` for all at once.
        gather: Whether the batch is spread over processes; or their process group.

    Shape:
        - streams: :math:`(B, M, D)`
        - present: :math:`(B, M)`
        - ids, valid: :math:`(B)`
        - output: scalar, or one loss for each of the :math:`P` pairs without reduction

    Raises:
        ValueError: As :func:`multiway_info_nce`.

    Example:
        >>> loss = MultiwayInfoNCELoss(temperature=1.0, pairs=[(0, 1), (0, 2)], weights=[1.0, 2.0])
        >>> loss(torch.ones(4, 3, 5))  # log(4): told apart by chance
        tensor(1.3863)
    """

    def __init__(
        self,
        temperature: float | nn.Module = 0.1,
        *,
        pairs: Sequence[Pair] | None = None,
        weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        symmetric: bool = True,
        similarity: Similarity = "cosine",
        same_id: SameId = "ignore",
        chunk_size: int | Literal["auto"] | None = None,
        gather: Any = False,
    ) -> None:
        super().__init__()
        check_reduction(reduction)
        _check_pairs_and_weights(pairs, weights)
        self.pairs = None if pairs is None else tuple((m, n) for m, n in pairs)
        self.weights = None if weights is None else tuple(weights)
        self.reduction: Reduction = reduction
        self.contrast = InfoNCELoss(
            temperature,
            symmetric=symmetric,
            similarity=similarity,
            same_id=same_id,
            chunk_size=chunk_size,
            gather=gather,
        )

    def forward(
        self,
        streams: Tensor,  # (B, M, D)
        present: Tensor | None = None,  # (B, M)
        *,
        ids: Tensor | None = None,  # (B,)
        valid: Tensor | None = None,  # (B,)
    ) -> Tensor:  # () or (P,)
        """Return the loss; shapes are given in the class docstring."""
        contrast, gather = self.contrast, self.contrast.gather
        losses, count = _each_pair(streams, present, ids, valid, contrast, self.pairs, gather)
        return _over_pairs(losses, count > 0, self.weights, self.reduction)

    def extra_repr(self) -> str:
        return f"pairs={self.pairs}, weights={self.weights}, reduction={self.reduction!r}"


def _each_pair(  # noqa: PLR0917 - in the order of the arguments
    streams: Tensor,  # (B, M, D)
    present: Tensor | None,  # (B, M)
    ids: Tensor | None,  # (B,)
    valid: Tensor | None,  # (B,)
    contrast: Callable[..., Tensor],
    pairs: Sequence[Pair] | None,
    gather: Any,
) -> tuple[Tensor, Tensor]:  # (P,), (P,)
    """The loss of each pair, and how many rows have it."""
    check_shape("streams", streams, "B", "M", "D", leading=False)
    rows, modalities = streams.shape[:2]
    if present is not None:
        check_mask("present", present, (rows, modalities))
    if valid is not None:
        check_mask("valid", valid, (rows,))
    losses, counts = [], []
    for m, n in chosen_pairs(pairs, modalities):
        both = both_observed(present, valid, m, n)
        losses.append(contrast(streams[:, m], streams[:, n], ids=ids, valid=both))
        counts.append(torch.tensor(rows, device=streams.device) if both is None else both.sum())
    if not losses:  # an empty sum: zero, yet part of the graph
        nothing = streams[:0].sum(dtype=at_least_float32(streams)).expand(0)
        return nothing, nothing.detach()
    count = torch.stack(counts)
    those = processes(gather, streams)
    return torch.stack(losses), count if those is None else those.total(count)


def _check_pairs_and_weights(pairs: Sequence[Pair] | None, weights: Sequence[float] | None) -> None:
    check_pairs(pairs)
    for weight in weights or ():
        if not 0 <= weight < math.inf:
            raise ValueError(f"Expected finite weights >= 0, got {weight}.")
    if pairs is not None:
        _check_weights(weights, len(pairs))


def _check_weights(weights: Sequence[float] | None, number: int) -> None:
    if weights is not None and len(weights) != number:
        raise ValueError(f"Expected one weight for each of {number} pairs, got {len(weights)}.")


def _over_pairs(
    losses: Tensor,  # (P,)
    there: Tensor,  # (P,)
    weights: Sequence[float] | None,
    reduction: Reduction,
) -> Tensor:  # () or (P,)
    _check_weights(weights, len(losses))
    if reduction == "none":
        return losses
    weight = losses.new_tensor(weights or [1.0] * len(losses)) * there
    total = (weight * losses).sum()
    if reduction == "sum":
        return total
    share = weight.sum()
    return total / torch.where(share == 0, torch.ones_like(share), share)
