"""Scorers without learning: what a model has to beat before it is worth its training.

Each is fitted on the train sequences only and satisfies :class:`cammsr.metrics.Scorer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from cammsr.config import ModelConfig
from cammsr.dataset import Dataset
from cammsr.memory import NEIGHBOURS, Memory, add_to
from cammsr.metrics import Scorer
from cammsr.split import Ragged, Split, keep_last

__all__ = ["ContentKNN", "ItemKNN", "Markov", "MemoryAlone", "Popularity", "floors"]

MAX_ITEMS = 20_000
DECAY = ModelConfig.memory_decay
REMEMBERED = 50  # items of a history


def floors(dataset: Dataset, split: Split) -> dict[str, Scorer]:
    """All floors; the content is text if there is any, else the first modality.

    Item k-NN is left out of a catalogue of more than ``MAX_ITEMS``.
    """
    modality = "text" if "text" in dataset.features else next(iter(dataset.features))
    found: dict[str, Scorer] = {
        "popularity": Popularity.fit(split.train, dataset.num_items),
        "content k-NN": ContentKNN.fit(dataset.features[modality]),
        "Markov": Markov.fit(split.train, dataset.num_items),
    }
    if dataset.num_items <= MAX_ITEMS:
        found["item k-NN"] = ItemKNN.fit(split.train, dataset.num_items)
    found["memory alone"] = MemoryAlone.fit(split.train, dataset.num_items)
    return found


@dataclass(frozen=True, eq=False)
class Popularity:
    """The more often an item occurs in the train sequences, the better, whatever the history."""

    counts: Tensor  # (V,)

    @classmethod
    def fit(cls, train: Ragged, num_items: int) -> Popularity:
        """Count every item."""
        return cls(torch.bincount(train.values, minlength=num_items).double())

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """The same counts for every row, (B, V)."""
        return self.counts.expand(len(items), -1)


@dataclass(frozen=True, eq=False)
class ContentKNN:
    """The cosine between an item's features and those of the last item of the history.

    An item without features has no direction, and a cosine of 0 with every other.
    """

    directions: Tensor  # (V, D_m), rows of length 1 or 0

    @classmethod
    def fit(cls, features: Tensor) -> ContentKNN:
        """Scale each row of the features (V, D_m) to length 1."""
        return cls(normalize(features, dim=1))

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """Cosines with the last item, (B, V)."""
        return self.directions[last_item(items, valid)] @ self.directions.T


@dataclass(frozen=True, eq=False)
class Markov:
    """How often an item came right after the last item of the history; popularity breaks ties."""

    followers: Ragged  # V rows: for each item, the items that came next, with repeats
    popularity: Tensor  # (V,)

    @classmethod
    def fit(cls, train: Ragged, num_items: int) -> Markov:
        """Collect the followers of every item."""
        same_user = train.rows[1:] == train.rows[:-1]
        item, follower = train.values[:-1][same_user], train.values[1:][same_user]
        counts = torch.bincount(item, minlength=num_items)
        followers = Ragged.from_lengths(follower[item.argsort(stable=True)], counts)
        return cls(followers, Popularity.fit(train, num_items).counts)

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """The count of (last item, item), plus a millionth of the popularity, (B, V)."""
        follower, real = self.followers.padded(last_item(items, valid))
        ties = (1e-6 * self.popularity).repeat(len(items), 1)
        return ties.scatter_add_(1, follower, real.double())


@dataclass(frozen=True, eq=False)
class ItemKNN:
    r"""The sum over the history of the items' cosine similarity as sets of users.

    .. math:: s_j = \sum_{i \in history} n_{ij} / \sqrt{n_i n_j}, \quad i \ne j

    where :math:`n_i` users have item i in their train sequence and :math:`n_{ij}` have both.
    """

    similarity: Tensor  # (V, V), zero on the diagonal

    @classmethod
    def fit(cls, train: Ragged, num_items: int) -> ItemKNN:
        """Count the users whom each pair of items shares.

        The similarity is dense: 4 V^2 bytes, 160 MB for 6,250 items. More than ``MAX_ITEMS`` items
        (1.6 GB) are refused.
        """
        if num_items > MAX_ITEMS:
            raise ValueError(
                f"Expected at most {MAX_ITEMS} items for the dense similarity of item k-NN, got "
                f"{num_items}. Take a smaller catalogue, for example with k_core."
            )
        shared = _users_in_common(train, num_items)
        users = shared.diagonal().clone()
        scale = users.clamp(min=1).rsqrt()
        similarity = shared.fill_diagonal_(0).mul_(scale).mul_(scale[:, None])
        return cls(similarity)

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """The summed similarity to the history, (B, V)."""
        weights = valid.to(self.similarity.dtype)
        return embedding_bag(items, self.similarity, per_sample_weights=weights, mode="sum")


@dataclass(frozen=True, eq=False)
class MemoryAlone:
    r"""What a :class:`~cammsr.memory.Memory` says without a model beside it, of the last 50 items.

    .. math:: s_j = 4 \sum_{l=1}^{L} d^{L - l} n_{i_l j} / \sqrt{n_{i_l} n_j}

    Unlike :class:`ItemKNN` it keeps the nearest 200 of an item only, counts late items more, and
    says nothing of what the history has already.
    """

    memory: Memory

    @classmethod
    def fit(cls, train: Ragged, num_items: int) -> MemoryAlone:
        """Count what users took together."""
        memory = Memory(num_items, NEIGHBOURS, DECAY).requires_grad_(False)
        memory.fit(train)
        return cls(memory)

    def scores(self, items: Tensor, valid: Tensor) -> Tensor:
        """The sum over the history, (B, V)."""
        items, valid = keep_last(items, valid, REMEMBERED)
        empty = torch.zeros(len(items), len(self.memory.rarity))
        return add_to(empty, self.memory(items, valid))


def last_item(items: Tensor, valid: Tensor) -> Tensor:  # (B,)
    """The last real item of each row."""
    last = (valid.sum(1) - 1).clamp(min=0)
    return items.gather(1, last[:, None]).squeeze(1)


def _users_in_common(train: Ragged, num_items: int) -> Tensor:  # (V, V)
    """How many users have both items of each pair; the diagonal counts the users of one item."""
    user, item = torch.unique(torch.stack([train.rows, train.values]), dim=1)  # an item once a user
    baskets = Ragged.from_lengths(item, torch.bincount(user, minlength=len(train)))
    shared = torch.zeros(num_items * num_items)
    for rows in torch.split(torch.arange(len(train)), 64):
        items, valid = baskets.padded(rows)  # (B, L)
        pair = items[:, :, None] * num_items + items[:, None, :]  # (B, L, L)
        pair = pair[valid[:, :, None] & valid[:, None, :]]
        shared.index_add_(0, pair, torch.ones(len(pair)))
    return shared.view(num_items, num_items)
