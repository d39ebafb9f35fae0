"""Metrics by group: every user in one group, and the groups add up to the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cammsr.breakdown import (
    GROUPINGS,
    Grouping,
    breakdown,
    by_category,
    by_length,
    by_popularity,
    by_training,
)
from cammsr.dataset import UNKNOWN
from cammsr.metrics import Ranks, ranking_values, summarise
from cammsr.split import Ragged, Target

Seeds = st.integers(0, 2**31 - 1)


def target_of(*items, lengths=None):
    lengths = torch.tensor(lengths or [1] * len(items))
    history = Ragged.from_lengths(torch.zeros(int(lengths.sum()), dtype=torch.int64), lengths)
    return Target(history, torch.tensor(items))


def train_of(*counts):
    """One sequence in which item i comes counts[i] times."""
    items = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Ragged.from_lengths(items, torch.tensor([len(items)]))


def named(grouping):
    return [grouping.names[number] for number in grouping.group.tolist()]


# -- groups ---------------------------------------------------------------------------------------


@given(seed=Seeds, users=st.integers(1, 60), groups=st.integers(1, 8))
def test_the_weighted_mean_over_groups_is_the_whole(seed, users, groups):
    generator = torch.Generator().manual_seed(seed)
    ranks = Ranks(*(torch.randint(2, 60, (2, users), generator=generator).double() / 2))
    group = torch.randint(0, groups, (users,), generator=generator)
    found = breakdown(ranks, Grouping(tuple(map(str, range(groups))), group))
    assert sum(values["users"] for values in found.values()) == users
    for name, whole in summarise(ranks).items():
        mean = sum(values["users"] * values[name] for values in found.values()) / users
        assert mean == pytest.approx(whole, abs=1e-12)


def test_a_group_is_the_mean_over_its_users():
    ranks = Ranks(torch.tensor([1.0, 3, 8, 30]).double(), torch.tensor([1.0, 2, 8, 9]).double())
    found = breakdown(ranks, Grouping(("a", "none", "b"), torch.tensor([0, 2, 0, 2])))
    assert list(found) == ["a", "b"], "a group without users has no means"
    values, masked = ranking_values(ranks.plain), ranking_values(ranks.masked)
    for name in values:
        assert found["a"][name] == (values[name][0] + values[name][2]) / 2
        assert found["b"][f"masked/{name}"] == (masked[name][1] + masked[name][3]) / 2


def test_a_category_called_unknown_is_not_the_group_without_one():
    ranks = Ranks(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    category = torch.tensor([0, UNKNOWN])
    found = breakdown(ranks, by_category(category, ("(unknown)",), target_of(0, 1, 1)))
    assert {name: values["users"] for name, values in found.items()} == {
        "(unknown)": 1,
        "((unknown))": 2,
    }


def test_ranks_and_users_must_agree():
    ranks = Ranks(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="got 3 ranks and 2 users"):
        breakdown(ranks, Grouping(("a",), torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("by", GROUPINGS)
def test_every_user_of_a_split_is_in_one_group(by, tiny, split):
    grouping = GROUPINGS[by](tiny, split)
    assert len(grouping.group) == tiny.num_users
    assert 0 <= int(grouping.group.min()) <= int(grouping.group.max()) < len(grouping.names)
    assert len(set(grouping.names)) == len(grouping.names)


# -- by what --------------------------------------------------------------------------------------


def test_by_category_of_the_target():
    category = torch.tensor([1, UNKNOWN, 0])
    grouping = by_category(category, ("a", "b"), target_of(0, 1, 2, 0))
    assert named(grouping) == ["b", "(unknown)", "a", "b"]


def test_by_length_of_the_whole_history():
    target = target_of(*[0] * 7, lengths=[1, 5, 6, 20, 21, 50, 51])
    names = ["1-5", "1-5", "6-10", "11-20", "21-50", "21-50", "more than 50"]
    assert named(by_length(target)) == names


def test_cold_targets_are_those_that_training_never_saw():
    grouping = by_training(train_of(2, 0, 1), target_of(0, 1, 2), 4)
    assert named(grouping) == ["in training", "cold", "in training"]


def test_popularity_is_cut_by_training_interactions():
    # Of ten interactions item 2 has the first five, items 0 and 3 the next four, item 1 the last.
    grouping = by_popularity(train_of(2, 1, 5, 2, 0), target_of(0, 1, 2, 3, 4), 5, parts=2)
    assert named(grouping) == ["50-100 %", "50-100 %", "0-50 %", "50-100 %", "50-100 %"]


@given(seed=Seeds, size=st.integers(1, 25), parts=st.integers(1, 6))
def test_popularity_is_a_loop_over_more_popular_items(seed, size, parts):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 6, (size,), generator=generator).tolist()
    counts[0] += 1
    group = by_popularity(train_of(*counts), target_of(*range(size)), size, parts).group.tolist()
    for item in range(size):
        before = sum(count for count in counts if count > counts[item])
        assert group[item] == min(before * parts // sum(counts), parts - 1)
