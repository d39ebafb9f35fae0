"""Tests for cammsr.batches."""

from __future__ import annotations

import pytest
import torch

from cammsr.batches import LengthBuckets, target_loader, training_loader
from cammsr.split import Ragged, Target

SEQUENCES = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10, 11], [12, 13]]


@pytest.fixture
def ragged():
    lengths = torch.tensor([len(sequence) for sequence in SEQUENCES])
    return Ragged.from_lengths(
        torch.tensor([item for sequence in SEQUENCES for item in sequence]), lengths
    )


def pairs(loader):
    """What is predicted from what: (items so far, next item)."""
    found = []
    for items, valid, targets, _ in loader:
        for row in range(len(items)):
            length = int(valid[row].sum())
            assert valid[row, :length].all()  # padding only on the right
            found += [
                (tuple(items[row, : p + 1].tolist()), int(targets[row, p])) for p in range(length)
            ]
    return sorted(found)


def test_every_item_but_the_first_is_predicted_once_from_all_before_it(ragged):
    expected = [(tuple(s[:p]), s[p]) for s in SEQUENCES for p in range(1, len(s))]
    assert pairs(training_loader(ragged, 10, 2, seed=0)) == sorted(expected)


def test_long_sequences_are_cut_to_their_end(ragged):
    expected = [(tuple(s[-4:][:p]), s[-4:][p]) for s in SEQUENCES for p in range(1, len(s[-4:]))]
    assert pairs(training_loader(ragged, 3, 2, seed=0)) == sorted(expected)


def test_a_batch_is_as_wide_as_its_longest_sequence(ragged):
    for items, valid, *_ in training_loader(ragged, 10, 2, seed=0):
        assert items.shape[1] == valid.sum(1).max()


def order(epoch, seed=0, rows=500):
    sampler = LengthBuckets(torch.arange(rows) % 17, 8, seed)
    sampler.set_epoch(epoch)
    return torch.cat(list(sampler))


def test_order_depends_on_seed_and_epoch_alone():
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert not torch.equal(order(3), order(3, seed=1))


def test_every_row_is_drawn_once():
    assert torch.equal(order(0).sort().values, torch.arange(500))


def test_lengths_are_alike_within_a_batch_and_batches_are_shuffled():
    lengths = torch.randint(1, 50, (2000,))
    batches = list(LengthBuckets(lengths, 20, seed=0))
    padded = sum(int(lengths[rows].max()) * len(rows) for rows in batches)
    assert padded < 1.15 * lengths.sum()
    longest = torch.tensor([int(lengths[rows].max()) for rows in batches])
    assert not torch.equal(longest, longest.sort().values)


def test_targets_are_read_once_with_their_history(ragged):
    target = Target(ragged, torch.tensor([21, 22, 23, 24, 25]))
    found = {}
    for items, valid, goal, _ in target_loader(target, 3, 2):
        for row in range(len(goal)):
            found[int(goal[row])] = items[row, valid[row]].tolist()
    assert found == {21 + u: sequence[-3:] for u, sequence in enumerate(SEQUENCES)}
