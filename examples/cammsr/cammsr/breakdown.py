"""Metrics by group of users: by what they were to be given, and by how much was known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cammsr.dataset import UNKNOWN, Dataset
from cammsr.metrics import Ranks, summarise
from cammsr.split import Ragged, Split, Target

__all__ = [
    "GROUPINGS",
    "Grouping",
    "breakdown",
    "by_category",
    "by_length",
    "by_popularity",
    "by_training",
]

LENGTHS = (5, 10, 20, 50)
PARTS = 5


@dataclass(frozen=True, eq=False)
class Grouping:
    """Every user belongs to exactly one of some groups."""

    names: tuple[str, ...]
    group: Tensor  # (U,) int64


def breakdown(ranks: Ranks, grouping: Grouping) -> dict[str, dict[str, float]]:
    """The number of users and the metrics of each group that has any, in the groups' order.

    Means over groups, weighted by their users, are the means over all users.
    """
    if len(ranks.plain) != len(grouping.group):
        raise ValueError(
            f"Expected one rank for each user, got {len(ranks.plain)} ranks and "
            f"{len(grouping.group)} users in groups."
        )
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(grouping.names):
        rows = grouping.group == number
        if rows.any():
            own = summarise(Ranks(ranks.plain[rows], ranks.masked[rows]))
            found[name] = {"users": int(rows.sum()), **own}
    return found


def by_category(category: Tensor, categories: tuple[str, ...], target: Target) -> Grouping:
    """By the single category (V,) of the target; targets without one are a group of their own."""
    own, unknown = category[target.item], "(unknown)"
    while unknown in categories:
        unknown = f"({unknown})"
    return Grouping((*categories, unknown), torch.where(own == UNKNOWN, len(categories), own))


def by_popularity(train: Ragged, target: Target, num_items: int, parts: int = PARTS) -> Grouping:
    """By how popular the target is in the train sequences.

    Items are sorted by their number of training interactions, the most popular first. The first
    group has the items at which the first 1 / parts of all interactions begins, and so on. Items of
    equal popularity are in one group, and those without interactions in the last.
    """
    counts = torch.bincount(train.values, minlength=num_items)
    levels, level = counts.unique(return_inverse=True)
    weight = levels * torch.bincount(level)
    more = weight.sum() - weight.cumsum(0)  # interactions with items that are more popular
    part = (more * parts // weight.sum().clamp(min=1)).clamp(max=parts - 1)
    edges = [100 * edge // parts for edge in range(parts + 1)]
    names = tuple(f"{low}-{high} %" for low, high in pairwise(edges))
    return Grouping(names, part[level][target.item])


def by_length(target: Target, edges: tuple[int, ...] = LENGTHS) -> Grouping:
    """By how many items the history has, at most each edge, or more than the last."""
    names = [f"{low + 1}-{edge}" for low, edge in pairwise((0, *edges))]
    group = torch.bucketize(target.history.lengths, torch.tensor(edges))
    return Grouping((*names, f"more than {edges[-1]}"), group)


def by_training(train: Ragged, target: Target, num_items: int) -> Grouping:
    """By whether the target occurs in the train sequences at all; if not, it is cold."""
    counts = torch.bincount(train.values, minlength=num_items)
    return Grouping(("in training", "cold"), (counts[target.item] == 0).long())


GROUPINGS: Mapping[str, Callable[[Dataset, Split], Grouping]] = {
    "category": lambda dataset, split: by_category(
        dataset.category, dataset.categories, split.test
    ),
    "popularity": lambda dataset, split: by_popularity(split.train, split.test, dataset.num_items),
    "length": lambda _, split: by_length(split.test),
    "cold": lambda dataset, split: by_training(split.train, split.test, dataset.num_items),
}
"""The groupings of a split's test users, by the names of the command line."""
