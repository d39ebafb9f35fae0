"""The split that a run asks for, and what there is to say of it."""

from __future__ import annotations

from typing import NamedTuple

from cammsr.config import Config
from cammsr.dataset import Dataset, DatasetError
from cammsr.split import Split, leave_one_out
from cammsr.time_split import TimeLeak, global_time_split, has_times, time_leak

__all__ = ["ChosenSplit", "choose_split"]


class ChosenSplit(NamedTuple):
    """A split, and how to speak of it."""

    name: str
    split: Split
    leak: TimeLeak | None  # of leave-one-out, where times are known
    note: str  # how much it looks into the future, or whom it leaves out


def choose_split(dataset: Dataset, config: Config) -> ChosenSplit:
    """Split a dataset as ``config.split`` and ``config.time_share`` say.

    Raises:
        DatasetError: the split is one by time, and the timestamps are positions, or a part of it
            would be empty.
        ValueError: leave-one-out, and a user has fewer than three interactions.
    """
    if config.split == "leave_one_out":
        split = leave_one_out(dataset)
        leak = time_leak(split, dataset) if has_times(dataset) else None
        return ChosenSplit("leave-one-out", split, leak, _leak_warning(leak))
    if not has_times(dataset):
        raise DatasetError(
            f"Expected times for the split 'global_time', the timestamps of '{dataset.name}' are "
            "positions in each user's sequence. Take the split 'leave_one_out'."
        )
    found = global_time_split(dataset, config.time_share)
    return ChosenSplit("global time", found.split, None, f"split by time: {found.describe()}")


def _leak_warning(leak: TimeLeak | None) -> str:
    if leak is None:
        return (
            "warning: leave-one-out leaks time: models train on what others did after a test "
            "target. How much is not known: the timestamps are positions, not times."
        )
    return (
        f"warning: leave-one-out leaks time: {leak.targets:.1%} of the test targets lie before "
        f"some training interaction, and {leak.interactions:.1%} of the training interactions "
        "after the target, on average. Numbers of a split by one time would be other ones."
    )
