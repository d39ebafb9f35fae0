"""Tests for training on prefixes: every prefix a row, one target at its end."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from cammsr.batches import Batch, TrainingPrefixes, trained_positions, training_loader
from cammsr.config import TrainingConfig
from cammsr.split import Ragged
from cammsr.training import train
from cammsr.variants import build

SEQUENCES = [[1, 2, 3], [4], [5, 6], [], [7, 8, 9, 10, 11], [12, 13]]


@pytest.fixture
def ragged():
    values = torch.tensor([item for sequence in SEQUENCES for item in sequence])
    lengths = torch.tensor([len(sequence) for sequence in SEQUENCES])
    return Ragged.from_lengths(values, lengths, 1000 + 7 * values)


def rows(loader):
    """History, its times and the target of every row."""
    found = []
    for items, valid, targets, times in loader:
        trained = trained_positions(Batch(items, valid, targets))
        assert (trained.sum(1) == 1).all()
        for row in range(len(items)):
            length = int(valid[row].sum())
            assert valid[row, :length].all()  # padding only on the right
            assert trained[row, length - 1], "the last"
            assert (items[row, length:] == 0).all()
            assert (targets[row] != -100).sum() == 1
            history = tuple(items[row, :length].tolist())
            assert times[row].tolist() == [1000 + 7 * i for i in history] + [0] * (
                items.shape[1] - length
            )
            found.append((history, int(targets[row, length - 1])))
    return sorted(found)


@pytest.mark.parametrize("max_length", [1, 2, 3, 10])
def test_every_prefix_is_a_row_with_its_next_item(ragged, max_length):
    expected = sorted(
        (tuple(s[max(0, end - max_length) : end]), s[end])
        for s in SEQUENCES
        for end in range(1, len(s))
    )
    assert rows(training_loader(ragged, max_length, 2, 0, examples="prefixes")) == expected
    assert len(expected) == sum(max(len(s) - 1, 0) for s in SEQUENCES)


def test_the_data_is_not_copied(ragged):
    dataset = TrainingPrefixes(ragged, 3)
    assert dataset.sequences is ragged
    assert len(dataset.ends) == len(dataset.lengths) == 8


def test_batches_are_of_similar_length_and_as_wide_as_their_longest():
    lengths = torch.arange(200) % 17 + 2
    many = Ragged.from_lengths(torch.randint(9, (int(lengths.sum()),)), lengths)
    padded = real = 0
    for batch in training_loader(many, 10, 20, 0, examples="prefixes"):
        assert batch.items.shape[1] == batch.valid.sum(1).max() <= 10
        padded, real = padded + batch.valid.numel(), real + int(batch.valid.sum())
    assert padded < 1.2 * real


def test_an_epoch_goes_on_where_it_was(ragged):
    first, second = (training_loader(ragged, 3, 2, 0, examples="prefixes") for _ in range(2))
    whole = list(first)
    taken = iter(second)
    next(taken)
    state = second.state_dict()
    assert state == {"taken": 1}
    second.load_state_dict(state)
    for expected, batch in itertools.zip_longest(whole[1:], second):
        assert all(torch.equal(*parts) for parts in zip(expected, batch, strict=True))


def test_every_position_is_trained_by_default(ragged):
    for batch in training_loader(ragged, 3, 2, 0):
        assert torch.equal(trained_positions(batch), batch.valid)
    assert TrainingConfig().examples == "sequences"


@pytest.mark.parametrize("variant", ["sasrec", "missrec", "cammsr", "hm4sr"])
def test_one_causal_pass_has_the_loss_of_all_prefixes(variant, tiny, split, config):
    """What is predicted from what is the same, so is the mean; without dropout."""
    model, objective = build(variant, tiny, config)
    model.eval()
    every = {
        examples: next(iter(training_loader(split.train, 9, 10_000, 0, examples=examples)))
        for examples in ("sequences", "prefixes")
    }
    assert len(every["prefixes"].items) > 2 * len(every["sequences"].items)
    model.positions = torch.nn.Parameter(torch.randn(9, model.positions.shape[1]))
    assert all(objective(model, batch)["loss"].isfinite() for batch in every.values())
    found = {name: objective(model, batch)["next_item"] for name, batch in every.items()}
    torch.testing.assert_close(found["sequences"], found["prefixes"])


def test_the_loop_trains_on_prefixes(tiny, split, config, tmp_path):
    options = replace(config.training, examples="prefixes", max_epochs=1, batch_size=50)
    config = replace(config, training=options)
    trained = train("hm4sr", tiny, split, config, tmp_path, progress=False)
    assert len(trained.curve) == 1
    expected = -(-int((split.train.lengths - 1).sum()) // 50)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == expected


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match=r"Expected examples among \['sequences', 'prefixes'\]"):
        TrainingConfig(examples="windows")  # type: ignore[arg-type]
