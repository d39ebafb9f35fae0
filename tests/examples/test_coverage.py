"""Coverage, inequality, novelty and diversity of lists, against loops."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cammsr.coverage import (
    category_diversity,
    describe_lists,
    feature_diversity,
    gini,
    novelty,
    reach,
    recommended,
)
from cammsr.dataset import UNKNOWN
from cammsr.ranking import Reader
from cammsr.serving import Recommender
from cammsr.split import Ragged
from cammsr.variants import build

Seeds = st.integers(0, 2**31 - 1)
Sizes = st.integers(2, 12)


def draw_lists(seed, size, users=5, k=4):
    """Lists of different items, some of them short."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(users, size, generator=generator).argsort(1)[:, :k]
    length = torch.randint(1, k + 1, (users, 1), generator=generator)
    return torch.where(torch.arange(order.shape[1]) < length, order, -1)


def items_of(lists):
    return [[item for item in row if item >= 0] for row in lists.tolist()]


def mean_over_lists(lists, distance):
    """The mean over lists of the mean over pairs, of those pairs that have a distance."""
    means = []
    for row in items_of(lists):
        pairs = [distance(a, b) for a, b in itertools.combinations(row, 2)]
        known = [value for value in pairs if value is not None]
        means += [statistics.fmean(known)] if known else []
    return statistics.fmean(means) if means else math.nan


@given(seed=Seeds, size=Sizes)
def test_reach_and_gini_count_every_item(seed, size):
    lists = draw_lists(seed, size)
    counts = [sum(item in row for row in items_of(lists)) for item in range(size)]
    assert reach(lists, size) == sum(count > 0 for count in counts) / size
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert gini(lists, size) == pytest.approx(differences / (2 * size * sum(counts)))


def test_gini_of_equal_and_of_one_sided_lists():
    assert gini(torch.arange(8).view(4, 2), 8) == pytest.approx(0)
    assert gini(torch.zeros(4, 1, dtype=torch.int64), 8) == pytest.approx(7 / 8)


@given(seed=Seeds, size=Sizes)
def test_novelty_is_the_mean_self_information(seed, size):
    lists = draw_lists(seed, size)
    train = torch.randint(0, size, (30,), generator=torch.Generator().manual_seed(seed))
    total = 30 + size
    bits = [
        -math.log2((train.tolist().count(item) + 1) / total)
        for row in items_of(lists)
        for item in row
    ]
    found = novelty(lists, Ragged.from_lengths(train, torch.tensor([30])), size)
    assert found == pytest.approx(statistics.fmean(bits))


@given(seed=Seeds, size=Sizes)
def test_category_diversity_is_a_loop_over_pairs(seed, size):
    lists = draw_lists(seed, size)
    category = torch.randint(-1, 3, (size,), generator=torch.Generator().manual_seed(seed))
    category[category < 0] = UNKNOWN

    def distance(a, b):
        known = UNKNOWN not in (category[a], category[b])
        return float(category[a] != category[b]) if known else None

    expected = mean_over_lists(lists, distance)
    assert category_diversity(lists, category) == pytest.approx(expected, nan_ok=True)


@given(seed=Seeds, size=Sizes)
def test_feature_diversity_is_a_loop_over_pairs(seed, size):
    lists = draw_lists(seed, size)
    features = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    features[::3] = 0

    def distance(a, b):
        norms = features[a].norm() * features[b].norm()
        return None if norms == 0 else 1 - float(features[a] @ features[b] / norms)

    expected = mean_over_lists(lists, distance)
    assert feature_diversity(lists, features) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_many_lists_are_a_mean_over_few():
    lists = draw_lists(0, 12, users=600)
    category = torch.arange(12) % 4
    each = [category_diversity(row.unsqueeze(0), category) for row in lists]
    known = [value for value in each if not math.isnan(value)]
    assert category_diversity(lists, category) == pytest.approx(statistics.fmean(known))


@pytest.mark.parametrize("unseen", [True, False])
def test_lists_are_those_that_are_served(unseen, tiny, split, config):
    model, _ = build("cammsr", tiny, config)
    lists = recommended(Reader(model.eval()), split.test, 4, unseen=unseen, block=6)
    histories = split.test.history.padded(torch.arange(tiny.num_users))
    served = Recommender(model, tiny).top_k(*histories, 4, unseen=unseen)
    assert torch.equal(lists, served.items)
    found = describe_lists(lists, tiny, split.train)
    assert found["coverage"] == reach(lists, tiny.num_items)
    assert found["diversity/image"] == feature_diversity(lists, tiny.features["image"])
