"""Batches of sequences of similar length, each padded to its own longest one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cammsr.config import Examples
from cammsr.split import Ragged, Target

__all__ = [
    "Batch",
    "LengthBuckets",
    "TargetBatch",
    "known_items",
    "target_loader",
    "trained_positions",
    "training_loader",
]

BATCHES_A_BUCKET = 20
NOTHING = -100  # no target


class Batch(NamedTuple):
    """Training sequences: at every valid position, the item to predict next, or -100 for none."""

    items: Tensor  # (B, L)
    valid: Tensor  # (B, L)
    targets: Tensor  # (B, L)
    times: Tensor | None = None  # (B, L) int64, of the items, if they are known


class TargetBatch(NamedTuple):
    """Histories and the one item to predict after each."""

    items: Tensor  # (B, L)
    valid: Tensor  # (B, L)
    target: Tensor  # (B,)
    times: Tensor | None = None  # (B, L) int64, of the items, if they are known


class LengthBuckets(Sampler[Tensor]):
    """Draw batches of rows: shuffled, yet of similar length within a batch.

    Rows are shuffled, cut into buckets of some batches, sorted by length within each, and the
    batches are shuffled again. The order depends on the seed and the epoch alone, so that after a
    stop it is known what is left of an epoch. Each of several processes, of which ``share`` gives
    the number of this one and how many there are, takes its rows of every batch.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.first_row, self.processes = share
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.taken = 0  # batches of this epoch
        self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator)
        buckets = shuffled.split(self.batch_size * BATCHES_A_BUCKET)
        by_length = [rows[self.lengths[rows].argsort(stable=True)] for rows in buckets]
        batches = torch.cat(by_length).split(self.batch_size)
        order = torch.randperm(len(batches), generator=generator).tolist()
        first, self._first = self._first, 0
        for place, batch in enumerate(order[first:], first):
            self.taken = place + 1
            yield batches[batch][self.first_row :: self.processes]

    def begin_at(self, batch: int) -> None:
        """Let the next epoch begin at a later batch."""
        self._first = self.taken = batch


class ResumableLoader(DataLoader[Batch]):
    """A loader of which a checkpoint keeps how much of the epoch it has given."""

    sampler: LengthBuckets

    def state_dict(self) -> dict[str, int]:
        """Batches of this epoch that were given; none when it is over."""
        return {"taken": self.sampler.taken % len(self.sampler)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Leave those out once."""
        self.sampler.begin_at(state_dict["taken"])


class TrainingSequences(Dataset[Batch]):
    """Sequences, read a batch of rows at a time; at least two items make a sequence."""

    def __init__(self, sequences: Ragged, max_length: int) -> None:
        self.sequences = sequences
        self.max_length = max_length

    def __getitem__(self, rows: Tensor) -> Batch:
        items, valid = self.sequences.padded(rows, self.max_length + 1)
        times = self.sequences.padded_times(rows, self.max_length + 1)
        return Batch(
            items[:, :-1], valid[:, 1:], items[:, 1:], None if times is None else times[:, :-1]
        )


class TrainingPrefixes(Dataset[Batch]):
    """Every prefix of at least two items, of which the last is the target: k - 1 of k items.

    Only where each one ends is kept; items are read where they lie.
    """

    def __init__(self, sequences: Ragged, max_length: int) -> None:
        place = torch.arange(len(sequences.values)) - sequences.offsets[sequences.rows]
        self.sequences = sequences
        self.ends = (place > 0).nonzero().flatten()  # (R,), the target
        self.lengths = (place[self.ends] + 1).clamp(max=max_length + 1)  # (R,), target included

    def __getitem__(self, rows: Tensor) -> Batch:
        lengths = self.lengths[rows] - 1
        place = torch.arange(int(lengths.max()))
        valid = place < lengths[:, None]
        index = torch.where(valid, (self.ends[rows] - lengths)[:, None] + place, 0)
        last = place == lengths[:, None] - 1
        values, times = self.sequences.values, self.sequences.times
        targets = torch.where(last, values[self.ends[rows], None], NOTHING)
        return Batch(
            values[index] * valid, valid, targets, None if times is None else times[index] * valid
        )


class Targets(Dataset[TargetBatch]):
    """Histories and targets, read a batch of users at a time."""

    def __init__(self, target: Target, max_length: int) -> None:
        self.target = target
        self.max_length = max_length

    def __getitem__(self, rows: Tensor) -> TargetBatch:
        items, valid = self.target.history.padded(rows, self.max_length)
        times = self.target.history.padded_times(rows, self.max_length)
        return TargetBatch(items, valid, self.target.item[rows], times)


def trained_positions(batch: Batch) -> Tensor:  # (B, L) bool
    """Where there is an item to predict."""
    return batch.valid & (batch.targets != NOTHING)


def known_items(batch: Batch) -> Tensor:  # (B, L + 1)
    """What is read of each sequence, and its last target; -1 is nothing."""
    last = (batch.valid.sum(1, keepdim=True) - 1).clamp(min=0)
    target = torch.where(trained_positions(batch), batch.targets, -1).gather(1, last)
    return torch.cat([torch.where(batch.valid, batch.items, -1), target], dim=1)


def training_loader(
    sequences: Ragged,
    max_length: int,
    batch_size: int,
    seed: int,
    *,
    examples: Examples = "sequences",
    share: tuple[int, int] = (0, 1),
) -> ResumableLoader:
    """All sequences of at least two items, or all their prefixes, in a new order every epoch.

    ``share`` is this process's number and how many there are; ``batch_size`` is that of all.
    """
    if examples == "prefixes":
        prefixes = TrainingPrefixes(sequences, max_length)
        sampler = LengthBuckets(prefixes.lengths, batch_size, seed, share)
        return ResumableLoader(_NeverEmpty(prefixes), sampler=sampler, batch_size=None)
    lengths = sequences.lengths
    trainable = lengths >= 2
    entries = trainable[sequences.rows]
    times = None if sequences.times is None else sequences.times[entries]
    kept = Ragged.from_lengths(sequences.values[entries], lengths[trainable], times)
    sampler = LengthBuckets(kept.lengths.clamp(max=max_length + 1), batch_size, seed, share)
    whole = TrainingSequences(kept, max_length)
    return ResumableLoader(_NeverEmpty(whole), sampler=sampler, batch_size=None)


def target_loader(
    target: Target, max_length: int, batch_size: int, share: tuple[int, int] = (0, 1)
) -> DataLoader[TargetBatch]:
    """All users, sorted by the length of their history; of each batch the rows of a process."""
    order = target.history.lengths.argsort(stable=True)
    first, processes = share
    batches = [rows[first::processes] for rows in order.split(batch_size)]
    return DataLoader(Targets(target, max_length), sampler=_Fixed(batches), batch_size=None)


class _NeverEmpty(Dataset[Batch]):
    """A process without a row of its own in a batch takes one that is all padding."""

    def __init__(self, examples: Dataset[Batch]) -> None:
        self.examples = examples

    def __getitem__(self, rows: Tensor) -> Batch:
        if len(rows):
            return self.examples[rows]
        batch = self.examples[torch.zeros(1, dtype=torch.int64)]
        return batch._replace(valid=torch.zeros_like(batch.valid))


class _Fixed(Sampler[Tensor]):
    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)
