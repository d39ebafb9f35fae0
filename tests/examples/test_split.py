"""Ragged rows, leave-one-out and cutting histories."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cammsr.dataset import Dataset
from cammsr.split import Ragged, keep_last, leave_one_out

Rows = st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=6)
Histories = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=7), min_size=1, max_size=6)


def ragged(rows: list[list[int]]) -> Ragged:
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    return Ragged.from_lengths(values, torch.tensor([len(row) for row in rows]))


def as_lists(rows: Ragged) -> list[list[int]]:
    return [rows[r].tolist() for r in range(len(rows))]


def dataset_of(histories: list[list[int]]) -> Dataset:
    rows = ragged(histories)
    return Dataset(
        name="shop",
        user_ids=rows.rows,
        item_ids=rows.values,
        timestamps=torch.arange(len(rows.values)),
        features={},
        categories=(),
        labels=torch.zeros(10, 0, dtype=torch.bool),
        category=torch.full((10,), -100),
        titles=("",) * 10,
    )


# -- rows -----------------------------------------------------------------------------------------


@given(rows=Rows)
def test_rows_come_back_as_they_went_in(rows: list[list[int]]) -> None:
    made = ragged(rows)
    assert as_lists(made) == rows
    assert made.lengths.tolist() == [len(row) for row in rows]
    assert made.rows.tolist() == [r for r, row in enumerate(rows) for _ in row]
    assert made[-1].tolist() == rows[-1]


@given(rows=Rows, max_length=st.none() | st.integers(1, 8), data=st.data())
def test_padding_keeps_the_last_entries_on_the_left(
    rows: list[list[int]], max_length: int | None, data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    items, valid = ragged(rows).padded(torch.tensor(chosen), max_length)
    kept = [rows[r] if max_length is None else rows[r][-max_length:] for r in chosen]
    longest = max(len(row) for row in kept)
    assert items.tolist() == [row + [0] * (longest - len(row)) for row in kept]
    assert valid.tolist() == [[p < len(row) for p in range(longest)] for row in kept]


@given(rows=Rows, max_length=st.integers(1, 8))
def test_cutting_a_padded_batch_is_padding_a_cut_one(
    rows: list[list[int]], max_length: int
) -> None:
    everyone = torch.arange(len(rows))
    cut_items, cut_valid = keep_last(*ragged(rows).padded(everyone), max_length)
    items, valid = ragged(rows).padded(everyone, max_length)
    assert torch.equal(cut_items, items)
    assert torch.equal(cut_valid, valid)


def test_a_row_out_of_range_ends_a_loop() -> None:
    assert [row.tolist() for row in ragged([[1], [2, 3]])] == [[1], [2, 3]]
    with pytest.raises(IndexError, match="Row 2 is out of range, there are 2 rows"):
        ragged([[1], [2, 3]])[2]


# -- leave-one-out --------------------------------------------------------------------------------


@given(histories=Histories)
def test_the_last_two_items_are_held_out(histories: list[list[int]]) -> None:
    split = leave_one_out(dataset_of(histories))
    assert as_lists(split.train) == [row[:-2] for row in histories]
    assert as_lists(split.validation.history) == [row[:-2] for row in histories]
    assert split.validation.item.tolist() == [row[-2] for row in histories]
    assert as_lists(split.test.history) == [row[:-1] for row in histories]
    assert split.test.item.tolist() == [row[-1] for row in histories]


def test_a_short_history_is_an_error_with_the_user_and_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"User 1 of 'shop' has 2 interactions.*k_core\(dataset"):
        leave_one_out(dataset_of([[1, 2, 3], [4, 5], [6]]))
