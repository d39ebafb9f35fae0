r"""What lists of recommendations are like beside being right: how much of the catalogue they reach.

All take the lists (U, k) of :class:`cammsr.ranking.TopK`, where -1 is no item, and go through them
some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cammsr.dataset import UNKNOWN, Dataset
from cammsr.ranking import BLOCK, best_of
from cammsr.reading import HistoryReader, readings
from cammsr.split import Ragged, Target

__all__ = [
    "category_diversity",
    "describe_lists",
    "feature_diversity",
    "gini",
    "novelty",
    "reach",
    "recommended",
]

ROWS = 256  # lists looked at together


def recommended(
    reader: HistoryReader, target: Target, k: int, *, unseen: bool = True, block: int = BLOCK
) -> Tensor:  # (U, k)
    """The k best items after each history; by default those that it has not seen."""
    lists = []
    for rows, reading in readings(reader, target):
        seen = None
        if unseen:
            items, valid = target.history.padded(torch.arange(rows.start, rows.stop))
            seen = torch.where(valid, items, -1).to(reading.states.device)
        found = best_of(reading, k, seen=seen, block=block)
        lists.append(found.items.cpu())
    return torch.cat(lists)


def describe_lists(
    lists: Tensor,  # (U, k)
    dataset: Dataset,
    train: Ragged,
) -> dict[str, float]:
    """Coverage, inequality, diversity and novelty of some lists by their names."""
    return {
        "coverage": reach(lists, dataset.num_items),
        "gini": gini(lists, dataset.num_items),
        "novelty": novelty(lists, train, dataset.num_items),
        "diversity/category": category_diversity(lists, dataset.category),
        **{
            f"diversity/{name}": feature_diversity(lists, values)
            for name, values in dataset.features.items()
        },
    }


def reach(lists: Tensor, num_items: int) -> float:
    """The share of the catalogue that is in any list."""
    return int((_counts(lists, num_items) > 0).sum()) / num_items


def gini(lists: Tensor, num_items: int) -> float:
    r"""How unequally the lists share the catalogue: 0 if all items come as often, near 1 if few do.

    .. math:: \frac{\sum_i (2 i - V - 1)\, n_i}{V \sum_i n_i}

    where :math:`n_1 \le \ldots \le n_V` are how often the items come, never included.
    """
    counts = _counts(lists, num_items).sort().values.double()
    place = torch.arange(1, num_items + 1, dtype=torch.float64)
    return float(((2 * place - num_items - 1) * counts).sum() / (num_items * counts.sum()))


def novelty(lists: Tensor, train: Ragged, num_items: int) -> float:
    r"""The mean self-information of a recommended item, in bits: the rarer, the more.

    .. math:: -\log_2 \frac{n_i + 1}{N + V}

    where item i has :math:`n_i` of the N training interactions. The one more makes it finite for an
    item that training never saw.
    """
    seen = torch.bincount(train.values, minlength=num_items).double()
    bits = -((seen + 1) / (len(train.values) + num_items)).log2()
    counts = _counts(lists, num_items)
    return float((counts * bits).sum() / counts.sum())


def category_diversity(lists: Tensor, category: Tensor) -> float:
    """The share of pairs within a list whose categories (V,) differ, on average over lists.

    Pairs with an item of unknown category do not count, nor do lists without a pair; NaN without
    any.
    """
    return _mean(_category_pairs(rows, category) for rows in lists.split(ROWS))


def feature_diversity(lists: Tensor, features: Tensor) -> float:
    """One minus the cosine of the features (V, D_m) of a pair within a list, on average over lists.

    Pairs with an item that lacks the modality do not count, nor do lists without a pair; NaN
    without any.
    """
    return _mean(_feature_pairs(rows, features) for rows in lists.split(ROWS))


def _counts(lists: Tensor, num_items: int) -> Tensor:  # (V,)
    return torch.bincount(lists[lists >= 0], minlength=num_items)


def _category_pairs(lists: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
    own = torch.where(lists >= 0, category[lists.clamp(min=0)], UNKNOWN)
    return own[:, :, None] != own[:, None, :], own != UNKNOWN


def _feature_pairs(lists: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    own = features[lists.clamp(min=0)].double()
    present = (own != 0).any(-1) & (lists >= 0)
    own = normalize(own, dim=-1)
    return 1 - own @ own.mT, present


def _mean(parts: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Distances (B, k, k) and who counts (B, k): the mean over lists of the mean over pairs."""
    total, lists = 0.0, 0
    for distance, counted in parts:
        pair = (counted[:, :, None] & counted[:, None, :]).triu(1)
        number = pair.sum((1, 2))
        sums = (distance.double() * pair).sum((1, 2))
        total += float((sums / number.clamp(min=1)).sum())
        lists += int((number > 0).sum())
    return total / lists if lists else float("nan")
