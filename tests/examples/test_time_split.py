"""The split by one time, and how far leave-one-out leaks, against loops over interactions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cammsr.split import leave_one_out
from cammsr.time_split import global_time_split, has_times, time_leak

per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
BEGAN = 1_600_000_000


def timed(dataset, seed, span=40):
    """The dataset at random times, sorted within each user, with ties."""
    generator = torch.Generator().manual_seed(seed)
    times = BEGAN + torch.randint(0, span, dataset.item_ids.shape, generator=generator)
    order = (dataset.user_ids * 10**10 + times).argsort(stable=True)
    return replace(dataset, timestamps=times[order])


def sequences(dataset):
    """Per user: (time, item) in order."""
    found = [[] for _ in range(dataset.num_users)]
    columns = (dataset.user_ids, dataset.timestamps, dataset.item_ids)
    for user, time, item in zip(*(c.tolist() for c in columns), strict=True):
        found[user].append((time, item))
    return found


# -- the split ------------------------------------------------------------------------------------


@per_example
@given(seed=st.integers(0, 1000), share=st.floats(0.3, 0.85))
def test_the_split_is_a_loop_over_users(tiny, seed, share):
    dataset = timed(tiny, seed)
    found = global_time_split(dataset, share)
    first, second = found.times
    train, validation, test = {}, {}, {}
    for user, steps in enumerate(sequences(dataset)):
        train[user] = [item for time, item in steps if time < first]
        inside = [item for time, item in steps if first <= time < second]
        before = [item for time, item in steps if time < second]
        after = [item for time, item in steps if time >= second]
        if inside:
            validation[user] = (train[user], inside[0])
        if after:
            test[user] = (before, after[0])
    split = found.split
    long_enough = {user: items for user, items in train.items() if len(items) >= 2}
    assert found.train_users.tolist() == list(long_enough)
    assert [row.tolist() for row in split.train] == list(long_enough.values())
    assert found.left_out["train"] == sum(len(items) == 1 for items in train.values())
    parts = (
        ("validation", found.validation_users, split.validation, validation),
        ("test", found.test_users, split.test, test),
    )
    for name, users, target, expected in parts:
        kept = {user: pair for user, pair in expected.items() if pair[0]}
        assert users.tolist() == list(kept)
        assert target.users.tolist() == list(kept)
        assert [target.user(row) for row in range(len(kept))] == list(kept)
        assert [row.tolist() for row in target.history] == [past for past, _ in kept.values()]
        assert target.item.tolist() == [item for _, item in kept.values()]
        assert len(target.history.times) == len(target.history.values)
        assert found.left_out[name] == len(expected) - len(kept)


def test_the_share_is_that_of_the_interactions(tiny):
    dataset = timed(tiny, 0, span=10**6)
    found = global_time_split(dataset, 0.6)
    count = len(dataset.item_ids)
    assert int((dataset.timestamps < found.times[0]).sum()) == int(0.6 * count)
    assert int((dataset.timestamps < found.times[1]).sum()) == int(0.8 * count)


def test_whom_the_split_leaves_out_is_said(tiny):
    dataset = timed(tiny, 0)
    late = dataset.user_ids == 3
    dataset = replace(dataset, timestamps=dataset.timestamps.masked_fill(late, BEGAN + 60))
    found = global_time_split(dataset)
    assert 3 not in found.test_users.tolist()
    assert found.left_out["test"] == 1
    assert f"left out without a history: {found.left_out['validation']} and 1" in found.describe()
    assert f"test from {found.times[1]} on" in found.describe()


# -- the leak -------------------------------------------------------------------------------------


@per_example
@given(seed=st.integers(0, 1000))
def test_the_leak_is_a_loop_over_pairs(tiny, seed):
    dataset = timed(tiny, seed)
    steps = sequences(dataset)
    tested = [user[-1][0] for user in steps]
    trained = [time for user in steps for time, _ in user[:-2]]
    later = [sum(time > target for time in trained) for target in tested]
    leak = time_leak(leave_one_out(dataset), dataset)
    assert leak.targets == pytest.approx(sum(n > 0 for n in later) / len(tested))
    assert leak.interactions == pytest.approx(sum(later) / len(tested) / len(trained))


def test_users_who_end_together_leak_nothing(tiny):
    counts = torch.bincount(tiny.user_ids)
    from_end = tiny.timestamps - counts[tiny.user_ids]  # -1 is the last of each user
    dataset = replace(tiny, timestamps=BEGAN + from_end)
    leak = time_leak(leave_one_out(dataset), dataset)
    assert (leak.targets, leak.interactions) == (0, 0)


# -- times ----------------------------------------------------------------------------------------


def test_positions_are_not_times(tiny):
    assert not has_times(tiny)
    assert has_times(timed(tiny, 0))
    holes = tiny.timestamps + (tiny.timestamps > 1)  # positions, of which k_core took some
    assert not has_times(replace(tiny, timestamps=holes))
    assert not has_times(replace(tiny, timestamps=holes + 1))
    assert has_times(replace(tiny, timestamps=2012 + tiny.timestamps))  # years
    assert has_times(replace(tiny, timestamps=tiny.timestamps // 2))  # ties
    for measure in (global_time_split, lambda dataset: time_leak(leave_one_out(tiny), dataset)):
        with pytest.raises(ValueError, match="timestamps of 'tiny' are positions"):
            measure(tiny)


def test_what_cannot_be_split_is_refused(tiny):
    with pytest.raises(ValueError, match=r"share between 0 and 1, got 1.0"):
        global_time_split(timed(tiny, 0), 1.0)
    together = replace(tiny, timestamps=torch.full_like(tiny.timestamps, BEGAN))
    with pytest.raises(ValueError, match=r"has 0 to train on, 0 to validate and 0 to test.*0\.8"):
        global_time_split(together)


def test_a_leak_needs_one_row_a_user(tiny):
    dataset = timed(tiny, 0)
    rows = global_time_split(dataset, 0.5)
    message = f"each of 24 users, got {len(rows.train_users)} to train on and"
    with pytest.raises(ValueError, match=message):
        time_leak(rows.split, dataset)
