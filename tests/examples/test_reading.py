"""Histories read for an evaluation: the same together for any batch, with their times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cammsr.ranking import Reader, Reading
from cammsr.reading import READ, readings
from cammsr.scoring import ModelScorer
from cammsr.split import Ragged, Target, leave_one_out
from cammsr.variants import build


class Lengths:
    """A reader whose state is the number of items that it is given."""

    x = torch.zeros(1)
    max_length = 3

    def __call__(self, items, valid, times=None):
        return Reading(valid.sum(1, keepdim=True).float(), torch.zeros(4, 1), None)


def trained(variant, dataset, config):
    model, _ = build(variant, dataset, config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return model.eval()


def test_all_rows_are_read_in_order_and_cut_to_their_end():
    lengths = torch.arange(2 * READ + 3) % 5 + 1
    history = Ragged.from_lengths(torch.zeros(int(lengths.sum()), dtype=torch.int64), lengths)
    found = list(readings(Lengths(), Target(history, torch.zeros_like(lengths))))
    ends = [(rows.start, rows.stop) for rows, _ in found]
    assert ends == [(0, READ), (READ, 2 * READ), (2 * READ, 2 * READ + 3)]
    states = torch.cat([reading.states for _, reading in found])
    assert states[:, 0].tolist() == lengths.clamp(max=3).tolist()


@pytest.mark.parametrize("variant", ["cammsr", "gru4rec", "hm4sr", "mmmlp", "tedrec", "unisrec"])
def test_states_and_candidates_make_the_scores_of_a_model(variant, tiny, config):
    split = leave_one_out(replace(tiny, timestamps=3_000_000 * tiny.timestamps))
    model = trained(variant, tiny, config)
    ((_, reading),) = readings(Reader(model), split.test)
    rows = torch.arange(tiny.num_users)
    times = split.test.history.padded_times(rows)
    expected = ModelScorer(model).scores(*split.test.history.padded(rows), times)
    torch.testing.assert_close(reading.states @ reading.candidates.T, expected)


def test_a_model_of_time_reads_with_times(tiny, config):
    model = trained("hm4sr", tiny, config)
    assert Reader(model).reads_times
    assert not Reader(trained("cammsr", tiny, config)).reads_times
    slow = leave_one_out(replace(tiny, timestamps=3_000_000 * tiny.timestamps)).test
    fast = leave_one_out(tiny).test
    states = [next(readings(Reader(model), target))[1].states for target in (slow, fast)]
    assert not torch.allclose(*states)
    # Without times positions stand in, and those are what the fixture has.
    history = replace(fast.history, times=None)
    (_, blind) = next(readings(Reader(model), replace(fast, history=history)))
    torch.testing.assert_close(blind.states, states[1])


def test_an_empty_history_is_refused():
    history = Ragged.from_lengths(torch.tensor([1, 2]), torch.tensor([1, 0, 1]))
    target = Target(history, torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="history in row 1 is empty"):
        list(readings(Lengths(), target))
