"""Scores of candidates: their product with a state, or a blend of one product a modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Blend", "paired_parts", "paired_scores", "scores_of"]


class Blend(Protocol):
    """Turns the products of a state with an item's modalities into parts that sum to the score.

    A candidate's modalities lie side by side, each as wide as a state, and one that the item lacks
    is all zero. What a blend says of one item must not depend on the items beside it, not in the
    last bit either: it works number by number, over modalities that come apart.
    """

    modalities: int

    def __call__(self, products: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[Tensor]:
        """One part a modality, each as the products are.

        Args:
            products: one a modality, (..., N).
            observed: which items have it, (N,) or as the products.
        """
        ...


def scores_of(
    states: Tensor,  # (..., D)
    candidates: Tensor,  # (N, W), W = D without a blend and M D with one
    blend: Blend | None = None,
) -> Tensor:  # (..., N)
    """The score of every candidate by every state."""
    if blend is None:
        return states @ candidates.T
    streams = candidates.unflatten(-1, (blend.modalities, -1)).unbind(-2)  # M of (N, D)
    products = [states @ stream.T for stream in streams]
    return _total(blend(products, [stream.any(-1) for stream in streams]))


def paired_scores(
    states: Tensor,  # (..., D)
    candidates: Tensor,  # (..., W)
    blend: Blend | None = None,
) -> Tensor:  # (...)
    """The score of one candidate by the state in its place."""
    if blend is None:
        return (states * candidates).sum(-1)
    return _total(paired_parts(states, candidates, blend))


def paired_parts(
    states: Tensor,  # (..., D)
    candidates: Tensor,  # (..., W)
    blend: Blend,
) -> Sequence[Tensor]:  # M of (...)
    """What each modality adds to :func:`paired_scores`."""
    streams = candidates.unflatten(-1, (blend.modalities, -1)).unbind(-2)
    products = [(states * stream).sum(-1) for stream in streams]
    return blend(products, [stream.any(-1) for stream in streams])


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Their sum, from the first to the last."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
