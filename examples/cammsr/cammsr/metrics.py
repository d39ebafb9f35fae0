"""Ranking over the whole catalogue: expected ranks, NDCG, hit rate and MRR.

A target that ties with other items takes its *expected* rank, as if ties were broken by a coin. A
constant score therefore puts every target in the middle of the catalogue, at rank (V + 1) / 2,
which is what a random order does on average.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor
from torchmetrics import Metric

from cammsr.split import Target

__all__ = [
    "CUTOFFS",
    "METRIC_NAMES",
    "Ranks",
    "RankingMetrics",
    "Scorer",
    "TimedScorer",
    "evaluate",
    "expected_rank",
    "ranking_values",
    "summarise",
    "target_ranks",
    "unseen_rank",
]

CUTOFFS = (5, 10, 20)
METRIC_NAMES = tuple(f"{name}@{k}" for name in ("ndcg", "hr", "mrr") for k in CUTOFFS)


class Scorer(Protocol):
    """Anything that scores the whole catalogue for a batch of histories."""

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """Score every item.

        Args:
            items: histories (B, L) in the order of time, padded on the right with 0. They are on
                the CPU; a scorer on another device moves them.
            valid: which positions are real, (B, L).

        Returns:
            Scores (B, V), the higher the better.
        """
        ...


class TimedScorer(Protocol):
    """A scorer that may read when the items were."""

    reads_times: bool

    def scores(self, items: Tensor, valid: Tensor, times: Tensor | None = None) -> Tensor:
        """Score every item as a :class:`Scorer` does, given the times of the items, (B, L)."""
        ...


class Ranks(NamedTuple):
    """The rank of each user's target, the best is 1."""

    plain: Tensor  # (U,) among all items
    masked: Tensor  # (U,) among the items that the user has not seen, and the target


def expected_rank(
    scores: Tensor,  # (B, V)
    target: Tensor,  # (B,)
) -> Tensor:  # (B,) float64
    """One, plus the items with a greater score, plus half the other items with an equal score.

    Raises:
        ValueError: a score is NaN. It compares as false with everything and would count as a win.
    """
    if scores.isnan().any():
        row, column = scores.isnan().nonzero()[0].tolist()
        raise ValueError(
            f"The score of item {column} in row {row} is NaN, so it cannot be ranked. "
            "Look for an overflow or an empty history in the model."
        )
    target = target.to(scores.device)
    own = scores.gather(1, target[:, None])
    greater = (scores > own).sum(1)
    equal_others = (scores == own).sum(1) - 1
    return 1 + greater.double() + equal_others.double() / 2


def ranking_values(rank: Tensor) -> dict[str, Tensor]:
    """NDCG, hit rate and MRR of each rank at each cutoff, all 0 for a rank beyond the cutoff.

    With one relevant item the ideal DCG is 1, so NDCG is 1 / log2(1 + rank).
    """
    gains = {"ndcg": 1 / torch.log2(1 + rank), "hr": torch.ones_like(rank), "mrr": 1 / rank}
    return {f"{name}@{k}": gains[name] * (rank <= k) for name in gains for k in CUTOFFS}


def unseen_rank(
    rank: Tensor,  # (B,)
    scores: Tensor,  # (B, V)
    target: Tensor,  # (B,)
    items: Tensor,  # (B, L)
    valid: Tensor,  # (B, L) bool
) -> Tensor:  # (B,) float64
    """The rank among the items that are not in the history.

    Takes back what the items of the history, each once, added to the rank. A target that is in the
    history already (a repeat) stays where it is.
    """
    target, items, valid = (tensor.to(scores.device) for tensor in (target, items, valid))
    ordered = torch.where(valid, items, -1).sort(dim=1).values
    counts = (ordered >= 0) & (ordered != target[:, None])
    counts[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    own, seen = scores.gather(1, target[:, None]), scores.gather(1, ordered.clamp(min=0))
    ahead = (seen > own).double() + (seen == own).double() / 2
    return rank - (ahead * counts).sum(1)


class RankingMetrics(Metric):
    """The means of :func:`ranking_values`, batch by batch.

    Sums run in float64 and each user counts once, so the batch size does not matter.
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(len(METRIC_NAMES), dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        scores: Tensor,  # (B, V)
        target: Tensor,  # (B,)
    ) -> None:
        """Rank a batch of targets and add them up."""
        values = ranking_values(expected_rank(scores, target))
        self.sums += torch.stack([values[name].sum() for name in METRIC_NAMES])
        self.count += len(target)

    def compute(self) -> dict[str, Tensor]:
        """The mean of every metric over all users so far."""
        return dict(zip(METRIC_NAMES, self.sums / self.count, strict=True))


@torch.no_grad()
def target_ranks(scorer: Scorer, target: Target, *, batch_size: int = 256) -> Ranks:
    """The rank of every user's target, so that two scorers can be compared user by user.

    Scores exist for one batch at a time. The scorer is given whole histories; a model that reads
    only the last few items cuts them itself (:func:`cammsr.split.keep_last`).
    """
    plain, masked = [], []
    order = target.history.lengths.argsort(stable=True)  # little of a batch is padding
    for rows in order.split(batch_size):
        items, valid = target.history.padded(rows)
        goal = target.item[rows]
        if _reads_times(scorer):
            scores = scorer.scores(items, valid, target.history.padded_times(rows))
        else:
            scores = scorer.scores(items, valid)
        rank = expected_rank(scores, goal)
        plain.append(rank.cpu())
        masked.append(unseen_rank(rank, scores, goal, items, valid).cpu())
    back = order.argsort()
    return Ranks(torch.cat(plain)[back], torch.cat(masked)[back])


def summarise(ranks: Ranks, *, masked: bool = True) -> dict[str, float]:
    """The mean of every metric; those among unseen items are named ``masked/...``."""
    means = {name: float(value.mean()) for name, value in ranking_values(ranks.plain).items()}
    if masked:
        unseen = ranking_values(ranks.masked)
        means |= {f"masked/{name}": float(value.mean()) for name, value in unseen.items()}
    return means


def evaluate(
    scorer: Scorer, target: Target, *, batch_size: int = 256, masked: bool = True
) -> dict[str, float]:
    """Rank every user's target once and average, over all items and over unseen items."""
    return summarise(target_ranks(scorer, target, batch_size=batch_size), masked=masked)


def _reads_times(scorer: Scorer | TimedScorer) -> TypeGuard[TimedScorer]:
    return bool(getattr(scorer, "reads_times", False))
