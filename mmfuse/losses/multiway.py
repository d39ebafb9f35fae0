"""InfoNCE between every two of several modalities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse._contrast import (
    Reduction,
    both_observed,
    check_pairs,
    check_reduction,
    chosen_pairs,
)
from mmfuse._precision import at_least_float32
from mmfuse.losses.info_nce import info_nce

__all__ = ["MultiwayInfoNCELoss", "multiway_info_nce"]

Pair = tuple[int, int]


def multiway_info_nce(
    streams: Tensor,  # (B, M, D)
    present: Tensor | None = None,  # (B, M)
    *,
    temperature: float = 0.1,
    pairs: Sequence[Pair] | None = None,
    weights: Sequence[float] | None = None,
    reduction: Reduction = "mean",
    ids: Tensor | None = None,  # (B,)
    valid: Tensor | None = None,  # (B,)
    symmetric: bool = True,
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
        temperature: Temperature of the InfoNCE.
        pairs: Pairs of modality indices, query first; ``None`` means all, smaller index first.
        weights: One weight a pair, not negative; ``None`` weighs all alike.
        reduction: ``"mean"`` over the pairs that have a row, the weighted ``"sum"``, or
            ``"none"``: one loss a pair, without its weight.
        ids: What each row is about; rows of one id are not each other's negatives.
        valid: Boolean; a row that is not valid takes part in no pair. Where no pair has a row the
            loss is zero and still part of the graph.
        symmetric: Whether each pair takes the mean of both directions.

    Shape:
        - streams: :math:`(B, M, D)`
        - present: :math:`(B, M)`
        - ids, valid: :math:`(B)`
        - output: scalar, or one loss for each of the :math:`P` pairs without reduction

    Returns:
        The loss, in float32 at least.

    Raises:
        ValueError: If shapes disagree, ``temperature`` is not positive, a pair is not one of two
            different modalities, ``weights`` are negative or not one a pair, or ``reduction`` is
            unknown.

    Example:
        >>> streams = torch.eye(2).unsqueeze(1).expand(2, 3, 2)  # three modalities that agree
        >>> multiway_info_nce(streams, temperature=1.0)
        tensor(0.3133)
        >>> multiway_info_nce(streams, temperature=1.0, reduction="none")
        tensor([0.3133, 0.3133, 0.3133])
    """
    check_shape("streams", streams, "B", "M", "D", leading=False)
    check_positive(temperature=temperature)
    check_reduction(reduction)
    _check_pairs_and_weights(pairs, weights)
    rows, modalities = streams.shape[:2]
    if present is not None:
        check_mask("present", present, (rows, modalities))
    if valid is not None:
        check_mask("valid", valid, (rows,))
    chosen = chosen_pairs(pairs, modalities)
    _check_weights(weights, len(chosen))
    losses, counts = [], []
    for m, n in chosen:
        both = both_observed(present, valid, m, n)
        one, other = streams[:, m], streams[:, n]
        losses.append(
            info_nce(one, other, temperature=temperature, ids=ids, valid=both, symmetric=symmetric)
        )
        counts.append(one.new_tensor(rows > 0, dtype=torch.bool) if both is None else both.any())
    # without a pair an empty sum: zero, yet part of the graph
    nothing = streams[:0].sum(dtype=at_least_float32(streams)).expand(0)
    each = torch.stack(losses) if losses else nothing
    there = torch.stack(counts) if counts else torch.zeros_like(nothing, dtype=torch.bool)
    return _over_pairs(each, there, weights, reduction)


class MultiwayInfoNCELoss(nn.Module):
    r"""InfoNCE over all pairs of modalities, as a module; see :func:`multiway_info_nce`.

    .. math::
        \mathcal{L} = \frac{\sum_{(m, n)} w_{mn} \, \mathrm{InfoNCE}(
        \mathbf{x}_{\cdot m}, \mathbf{x}_{\cdot n})}{\sum_{(m, n)} w_{mn}}

    Args:
        temperature: Temperature of the InfoNCE.
        pairs: Pairs of modality indices, query first; ``None`` means all, smaller index first.
        weights: One weight a pair, not negative; ``None`` weighs all alike.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over the pairs.
        symmetric: Whether each pair takes the mean of both directions.

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
        temperature: float = 0.1,
        *,
        pairs: Sequence[Pair] | None = None,
        weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_reduction(reduction)
        _check_pairs_and_weights(pairs, weights)
        self.temperature = temperature
        self.pairs = None if pairs is None else tuple((m, n) for m, n in pairs)
        self.weights = None if weights is None else tuple(weights)
        self.reduction: Reduction = reduction
        self.symmetric = symmetric

    def forward(
        self,
        streams: Tensor,  # (B, M, D)
        present: Tensor | None = None,  # (B, M)
        *,
        ids: Tensor | None = None,  # (B,)
        valid: Tensor | None = None,  # (B,)
    ) -> Tensor:  # () or (P,)
        """Return the loss; shapes are given in the class docstring."""
        return multiway_info_nce(
            streams,
            present,
            temperature=self.temperature,
            pairs=self.pairs,
            weights=self.weights,
            reduction=self.reduction,
            ids=ids,
            valid=valid,
            symmetric=self.symmetric,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, pairs={self.pairs}, weights={self.weights}, "
            f"reduction={self.reduction!r}, symmetric={self.symmetric}"
        )


def _check_pairs_and_weights(pairs: Sequence[Pair] | None, weights: Sequence[float] | None) -> None:
    check_pairs(pairs)
    for weight in weights or ():
        if not weight >= 0:
            raise ValueError(f"Expected weights >= 0, got {weight}.")
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
    if reduction == "none":
        return losses
    weight = losses.new_tensor(weights or [1.0] * len(losses)) * there
    total = (weight * losses).sum()
    if reduction == "sum":
        return total
    share = weight.sum()
    return total / torch.where(share == 0, torch.ones_like(share), share)
