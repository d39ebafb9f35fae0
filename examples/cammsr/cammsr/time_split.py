"""A split by one clock for all users, and how far leave-one-out looks into the future.

Leave-one-out holds out the last items of each user, at whatever time those were. While one user's
last item is the test, the model has trained on what others did after it: it knows what became
popular. A split by one time does not let it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cammsr.dataset import Dataset, DatasetError
from cammsr.split import Ragged, Split, Target

__all__ = ["TimeLeak", "TimeSplit", "global_time_split", "has_times", "time_leak"]


@dataclass(frozen=True, eq=False)
class TimeSplit:
    """A split at two times, and whom it leaves out.

    Attributes:
        split: what to train on, and the targets; rows of its parts are different users.
        times: when validation begins, and when the test does.
        train_users: whose the train sequences are.
        validation_users: whose the validation targets are.
        test_users: whose the test targets are.
        left_out: how many users have too little for each part, by its name.
    """

    split: Split
    times: tuple[int, int]
    train_users: Tensor
    validation_users: Tensor
    test_users: Tensor
    left_out: dict[str, int]

    def describe(self) -> str:
        """One sentence for people."""
        return (
            f"train before {self.times[0]}, test from {self.times[1]} on: "
            f"{len(self.train_users)} users to train on (left out with one item only: "
            f"{self.left_out['train']}), {len(self.validation_users)} and {len(self.test_users)} "
            "with a validation and a test target (left out without a history: "
            f"{self.left_out['validation']} and {self.left_out['test']})"
        )


@dataclass(frozen=True)
class TimeLeak:
    """How much of the training lies after the targets of a test.

    Attributes:
        targets: the share of test targets before the time of some training interaction.
        interactions: the share of training interactions after a target, on average over targets.
    """

    targets: float
    interactions: float


def has_times(dataset: Dataset) -> bool:
    """Whether timestamps look like times that can be compared between users.

    They do not if they could be positions in each user's sequence: from 0 or 1 on, rising within
    every user, and never far beyond the longest sequence.
    """
    steps = dataset.timestamps.diff()[dataset.user_ids.diff() == 0]
    longest = int(torch.bincount(dataset.user_ids).max())
    low, high = int(dataset.timestamps.min()), int(dataset.timestamps.max())
    return not (0 <= low <= 1 and high <= 4 * longest and bool((steps > 0).all()))


def global_time_split(dataset: Dataset, share: float = 0.8) -> TimeSplit:
    """Train before a time; the targets are what users took first after it.

    Validation begins where ``share`` of all interactions are over, and the test where half of the
    rest is. A user's validation target is their first item between the two times, their test target
    the first from the second on, and each history is all that they took before that time. A user
    without a history, or with one item to train on only, is left out of that part and counted.
    Items that occur in no train sequence are cold.

    Raises:
        ValueError: the share is none.
        DatasetError: the timestamps are positions, or a part is empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"Expected a share between 0 and 1, got {share}.")
    _check_times(dataset)
    ordered = dataset.timestamps.sort().values
    places = [int(part * len(ordered)) for part in (share, (1 + share) / 2)]
    first, second = (int(ordered[place]) for place in places)
    train = _before(dataset, first)
    enough = train.lengths >= 2
    validation, validation_users, no_past = _targets(dataset, first, second)
    test, test_users, no_past_either = _targets(dataset, second, int(ordered[-1]) + 1)
    parts = (int(enough.sum()), len(validation_users), len(test_users))
    if not all(parts):
        raise DatasetError(
            f"Expected users in every part, '{dataset.name}' has {parts[0]} to train on, "
            f"{parts[1]} to validate and {parts[2]} to test at a share of {share}."
        )
    return TimeSplit(
        split=Split(_rows(train, enough), validation, test),
        times=(first, second),
        train_users=enough.nonzero().flatten(),
        validation_users=validation_users,
        test_users=test_users,
        left_out={
            "train": int((train.lengths == 1).sum()),
            "validation": no_past,
            "test": no_past_either,
        },
    )


def time_leak(split: Split, dataset: Dataset) -> TimeLeak:
    """How much of a split's training lies after its test targets.

    The split must hold out the end of each user's sequence, one row a user, as leave-one-out does.

    Raises:
        ValueError: it does not, or the timestamps are positions.
    """
    _check_times(dataset)
    if not len(split.train) == len(split.test.item) == dataset.num_users:
        raise ValueError(
            f"Expected a split with one row for each of {dataset.num_users} users, got "
            f"{len(split.train)} to train on and {len(split.test.item)} to test."
        )
    counts = torch.bincount(dataset.user_ids, minlength=dataset.num_users)
    sequences = Ragged.from_lengths(dataset.timestamps, counts)
    start = sequences.offsets[:-1]
    position = torch.arange(len(dataset.item_ids)) - start[dataset.user_ids]
    trained = dataset.timestamps[position < split.train.lengths[dataset.user_ids]].sort().values
    tested = dataset.timestamps[start + split.test.history.lengths]
    later = len(trained) - torch.searchsorted(trained, tested, right=True)
    return TimeLeak(
        targets=float((later > 0).double().mean()),
        interactions=float(later.double().mean()) / len(trained),
    )


def _check_times(dataset: Dataset) -> None:
    if not has_times(dataset):
        raise DatasetError(
            f"The timestamps of '{dataset.name}' are positions in each user's sequence, not times "
            "that could be compared between users."
        )


def _before(dataset: Dataset, time: int) -> Ragged:
    """What each user took before a time, a row a user."""
    keep = dataset.timestamps < time
    lengths = torch.bincount(dataset.user_ids[keep], minlength=dataset.num_users)
    return Ragged.from_lengths(dataset.item_ids[keep], lengths, dataset.timestamps[keep])


def _targets(dataset: Dataset, begin: int, end: int) -> tuple[Target, Tensor, int]:
    """First items in [begin, end), after histories before it, whose, and users without history."""
    history = _before(dataset, begin)
    inside = (dataset.timestamps >= begin) & (dataset.timestamps < end)
    place = inside.nonzero().flatten()
    users, count = dataset.user_ids[place].unique_consecutive(return_counts=True)
    place = place[count.cumsum(0) - count]  # the first of each user
    has_past = history.lengths[users] > 0
    rows = torch.zeros(dataset.num_users, dtype=torch.bool)
    rows[users[has_past]] = True
    target = Target(_rows(history, rows), dataset.item_ids[place[has_past]], users[has_past])
    return target, users[has_past], int((~has_past).sum())


def _rows(ragged: Ragged, keep: Tensor) -> Ragged:
    """The rows (R,) bool that are kept."""
    entries = keep[ragged.rows]
    times = None if ragged.times is None else ragged.times[entries]
    return Ragged.from_lengths(ragged.values[entries], ragged.lengths[keep], times)
