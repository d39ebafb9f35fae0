"""Leave-one-out: each user's last item is the test, the one before it the validation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cammsr.dataset import Dataset

__all__ = ["Ragged", "Split", "Target", "keep_last", "leave_one_out"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, one after the other: row r is ``values[offsets[r]:offsets[r+1]]``.

    Attributes:
        values: all entries, row by row.
        offsets: where each row begins, and where the last one ends.
        times: when each entry was, if that is known.
    """

    values: Tensor  # (N,) int64
    offsets: Tensor  # (R + 1,) int64
    times: Tensor | None = None  # (N,) int64

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor, times: Tensor | None = None) -> Ragged:
        """Cut the values (N,), and their times (N,), into rows of these lengths (R,)."""
        return cls(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), times)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Tensor:
        if not -len(self) <= row < len(self):
            raise IndexError(f"Row {row} is out of range, there are {len(self)} rows.")
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Tensor:  # (R,) int64
        """The number of entries of each row."""
        return self.offsets.diff()

    @property
    def rows(self) -> Tensor:  # (N,) int64
        """The row of each entry."""
        return torch.arange(len(self)).repeat_interleave(self.lengths)

    def padded(self, rows: Tensor, max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """The last ``max_length`` entries of some rows as a rectangle, padded on the right with 0.

        Args:
            rows: which rows, (B,).
            max_length: the longest that a row may be; whole rows by default.

        Returns:
            The entries (B, L) and which of them are real (B, L), L being the longest of these rows.
        """
        index, valid = self._window(rows, max_length)
        items = torch.zeros_like(index)
        items[valid] = self.values[index[valid]]
        return items, valid

    def padded_times(self, rows: Tensor, max_length: int | None = None) -> Tensor | None:  # (B, L)
        """The times of what :meth:`padded` returns, 0 at padding; None where they are not known."""
        if self.times is None:
            return None
        index, valid = self._window(rows, max_length)
        times = torch.zeros_like(index)
        times[valid] = self.times[index[valid]]
        return times

    def _window(self, rows: Tensor, max_length: int | None) -> tuple[Tensor, Tensor]:
        """Where the last entries of some rows lie, and which places are real, both (B, L)."""
        lengths = self.lengths[rows]
        if max_length is not None:
            lengths = lengths.clamp(max=max_length)
        position = torch.arange(int(lengths.max()) if len(lengths) else 0)
        valid = position < lengths[:, None]
        return (self.offsets[rows + 1] - lengths)[:, None] + position, valid


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be predicted for some users, and what is known by then."""

    history: Ragged  # U rows of item ids, in the order of time
    item: Tensor  # (U,) int64
    users: Tensor | None = None  # (U,) int64, whose rows; those of all users in turn by default

    def user(self, row: int) -> int:
        """The user of a row."""
        return row if self.users is None else int(self.users[row])


@dataclass(frozen=True, eq=False)
class Split:
    """Train sequences, and the two targets that no model may be fitted on."""

    train: Ragged  # U rows of item ids, in the order of time
    validation: Target
    test: Target


def leave_one_out(dataset: Dataset) -> Split:
    """Hold out the last two items of every user.

    The test history includes the validation item: by then it has been seen.

    Raises:
        ValueError: a user has fewer than three interactions.
    """
    counts = torch.bincount(dataset.user_ids, minlength=dataset.num_users)
    if int(counts.min()) < 3:
        user = int((counts < 3).nonzero()[0])
        raise ValueError(
            f"User {user} of '{dataset.name}' has {int(counts[user])} interactions, leave-one-out "
            "needs at least 3. Drop such users with k_core(dataset, k=3) or more."
        )
    sequences = Ragged.from_lengths(dataset.item_ids, counts, dataset.timestamps)
    ends = sequences.offsets[1:]
    train, history = _without_last(sequences, 2), _without_last(sequences, 1)
    return Split(
        train=train,
        validation=Target(train, dataset.item_ids[ends - 2]),
        test=Target(history, dataset.item_ids[ends - 1]),
    )


def keep_last(
    items: Tensor,  # (B, L)
    valid: Tensor,  # (B, L) bool, padded on the right
    max_length: int,
) -> tuple[Tensor, Tensor]:
    """Cut a padded batch down to the last ``max_length`` real entries of each row."""
    length = min(max_length, items.shape[1])
    lengths = valid.sum(1)
    start = (lengths - length).clamp(min=0)
    index = start[:, None] + torch.arange(length, device=items.device)  # (B, length)
    return items.gather(1, index), valid.gather(1, index)


def _without_last(sequences: Ragged, count: int) -> Ragged:
    position = torch.arange(len(sequences.values))
    keep = position < (sequences.offsets[1:] - count)[sequences.rows]
    times = None if sequences.times is None else sequences.times[keep]
    return Ragged.from_lengths(sequences.values[keep], sequences.lengths - count, times)
