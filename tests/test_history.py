"""Tests for mmfuse._history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings

from mmfuse._history import close_history, open_history
from tests.outcomes import assert_same, places
from tests.strategies import Sequences, sequences, with_nan

few = settings(max_examples=25)


@few
@given(case=sequences())
def test_what_is_absent_or_padding_is_cleared(case: Sequences) -> None:
    """Whatever it held."""
    *_, num_modalities, dim = case.x.shape
    there = case.present & case.valid.unsqueeze(-1)
    history = open_history(
        with_nan(case.x, there), case.present, case.valid, num_modalities=num_modalities, dim=dim
    )
    assert history.seen is not None
    for place in places(there.shape):
        observed = bool(case.present[place]) and bool(case.valid[place[:-1]])
        assert bool(history.seen[place]) is observed
        assert_same(history.x[place], case.x[place] if observed else torch.zeros(dim).double())
    assert_same(history.valid, case.valid)
    assert not history.single


def test_without_masks_nothing_is_masked() -> None:
    x = torch.randn(2, 5, 3, 4)
    history = open_history(x, None, None, num_modalities=3, dim=4)
    assert history.x is x
    assert history[1:] == (None, None, False)
    fused = torch.randn(2, 5, 4)
    assert close_history(fused, history) is fused


def test_one_mask_is_enough() -> None:
    x, mask = torch.randn(5, 3, 4), torch.rand(5, 3) < 0.5
    assert_same(open_history(x, mask, None, num_modalities=3, dim=4).seen, mask)
    padded = open_history(x, None, mask[:, 0], num_modalities=3, dim=4)
    assert_same(padded.seen, mask[:, :1].expand(5, 3))


@pytest.mark.parametrize("real", [True, False])
def test_a_single_row_is_a_history_of_one(real: bool) -> None:
    x, present, valid = torch.randn(3, 4), torch.tensor([True, False, True]), torch.tensor(real)
    history = open_history(x, present, valid, num_modalities=3, dim=4)
    long = open_history(x[None], present[None], valid[None], num_modalities=3, dim=4)
    assert history.single
    assert_same(history[:3], long[:3])
    fused = torch.randn(1, 4)
    assert_same(close_history(fused, history), fused[0] * real)
    assert_same(close_history(fused, long), fused * real)


def test_a_single_row_without_masks_comes_out_as_it_is() -> None:
    history = open_history(torch.randn(3, 4), None, None, num_modalities=3, dim=4)
    assert history.x.shape == (1, 3, 4)
    assert history[1:] == (None, None, True)
    assert close_history(torch.zeros(1, 4), history).shape == (4,)


@few
@given(case=sequences())
def test_padding_comes_out_as_zeros(case: Sequences) -> None:
    *_, num_modalities, dim = case.x.shape
    history = open_history(case.x, case.present, case.valid, num_modalities=num_modalities, dim=dim)
    fused = torch.randn(*case.valid.shape, dim)
    closed = close_history(with_nan(fused, case.valid), history)
    for place in places(case.valid.shape):
        assert_same(closed[place], fused[place] if case.valid[place] else torch.zeros(dim))


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(5, 2, 4)}, r"Expected x of shape \(\.\.\., 3, 4\), got \(5, 2, 4\)\."),
        ({"x": torch.zeros(4)}, r"Expected x of shape \(\.\.\., 3, 4\), got \(4,\)\."),
        (
            {"present": torch.ones(3, dtype=torch.bool)},
            r"Expected present of shape \(5, 3\), got \(3,\)\.",
        ),
        (
            {"valid": torch.ones(5, 3, dtype=torch.bool)},
            r"Expected valid of shape \(5,\), got \(5, 3\)\.",
        ),
        ({"valid": torch.ones(5)}, r"Expected valid of dtype torch\.bool, got torch\.float32\."),
        ({"max_length": 4}, r"Expected L <= max_length = 4, got 5\."),
    ],
)
def test_rejects_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(5, 3, 4), "present": None, "valid": None}
    with pytest.raises(ValueError, match=message):
        open_history(**{**given, "num_modalities": 3, "dim": 4, **changed})


def test_a_single_row_is_told_of_its_own_shapes() -> None:
    """Not of those with the time that was added."""
    x, options = torch.zeros(3, 4), {"num_modalities": 3, "dim": 4}
    with pytest.raises(ValueError, match=r"Expected present of shape \(3,\), got \(2,\)\."):
        open_history(x, torch.ones(2, dtype=torch.bool), None, **options)
    with pytest.raises(ValueError, match=r"Expected valid of shape \(\), got \(1,\)\."):
        open_history(x, None, torch.ones(1, dtype=torch.bool), **options)


def test_a_history_may_be_as_long_as_the_limit() -> None:
    options = {"num_modalities": 3, "dim": 4}
    assert open_history(torch.zeros(5, 3, 4), None, None, max_length=5, **options).x.shape[0] == 5
    assert open_history(torch.zeros(3, 4), None, None, max_length=1, **options).single
