"""Tests for mmfuse.projection.table."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from mmfuse import FeatureTable, ModalityProjection
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, places
from tests.strategies import leads, seeds, sizes

few = settings(max_examples=25)


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Features of a catalogue, some of them all zero, and items to look up."""
    items, width, lead = draw(sizes), draw(sizes), draw(leads())
    torch.manual_seed(draw(seeds))
    features = torch.randn(items, width, dtype=torch.float64)
    features[torch.rand(items) < 0.4] = 0
    return features, torch.randint(items, lead)


# -- reference: the formula, read aloud -----------------------------------------------------------


@given(catalogues(), st.booleans(), st.sampled_from([torch.int64, torch.int32]))
@few
def test_matches_naive(case, trainable, dtype):
    features, items = case
    rows, present = FeatureTable(features, trainable)(items.to(dtype))
    for place in places(items.shape):
        row = features[int(items[place])].tolist()
        assert rows[place].tolist() == row
        assert bool(present[place]) == any(value != 0 for value in row)


# -- properties -----------------------------------------------------------------------------------


def test_all_zero_row_is_absent_whatever_its_sign():
    table = FeatureTable(torch.tensor([[0.0, 0.0], [-0.0, 0.0], [0.0, -1e-30]]))
    assert table(torch.arange(3)).present.tolist() == [False, False, True]


def test_frozen_rows_are_saved_and_not_trained():
    table = FeatureTable(torch.eye(3))
    assert not list(table.parameters())
    assert set(table.state_dict()) == {"features", "present"}
    assert not table(torch.arange(3)).features.requires_grad


def train(table: FeatureTable, items: Tensor) -> None:
    """Ten steps towards one, with momentum and weight decay, which move what has a gradient."""
    optimizer = torch.optim.AdamW(table.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        ((table(items).features - 1) ** 2).sum().backward()
        optimizer.step()


def test_trainable_row_learns():
    table = FeatureTable(torch.tensor([[0.5, 0.5], [0.2, 0.2]]), trainable=True)
    train(table, torch.tensor([0]))
    assert ((table.features[0] - 1).abs() < 0.5).all()


def test_absent_row_stays_absent_beside_rows_that_learn():
    table = FeatureTable(torch.tensor([[0.5, 0.5], [0.0, 0.0]]), trainable=True)
    train(table, torch.tensor([0, 1]))
    rows, present = table(torch.tensor([1]))
    assert (rows == 0).all()
    assert not present.any()


def test_row_that_training_set_to_zero_is_still_present():
    table = FeatureTable(torch.ones(1, 2), trainable=True)
    nn.init.zeros_(table.features)
    assert table(torch.tensor([0])).present.all()


@pytest.mark.parametrize("trainable", [False, True])
def test_state_dict_brings_rows_and_presence_back(trainable):
    table = FeatureTable(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), trainable)
    fresh = FeatureTable(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), trainable)
    fresh.load_state_dict(table.state_dict())
    assert_same(fresh(torch.arange(2)), table(torch.arange(2)))


@pytest.mark.parametrize("trainable", [False, True])
def test_later_changes_of_the_given_features_change_nothing(trainable):
    features = torch.ones(2, 3, requires_grad=True)
    table = FeatureTable(features, trainable)
    with torch.no_grad():
        features.zero_()
    assert (table(torch.arange(2)).features == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_as_given_and_projected_in_full(dtype):
    features = torch.randn(4, 3).to(dtype)
    table, projection = FeatureTable(features), ModalityProjection({"text": 3}, 2)
    rows, present = table(torch.arange(4))
    assert table.features.dtype == rows.dtype == dtype
    x, _ = projection({"text": rows}, {"text": present})
    assert_same(x, projection({"text": features.float()}).x)


def test_presence_survives_a_change_of_dtype():
    table = FeatureTable(torch.tensor([[1e-30], [0.0]])).half()  # the value itself becomes zero
    assert table(torch.arange(2)).present.tolist() == [True, False]


def test_strided_features_are_looked_up_alike():
    features = torch.randn(3, 5)
    items = torch.tensor([4, 0, 4])
    assert_same(FeatureTable(features.mT)(items), FeatureTable(features.mT.contiguous())(items))


def test_empty_catalogue_and_empty_lookup():
    rows, present = FeatureTable(torch.empty(0, 3))(torch.empty(2, 0, dtype=torch.int64))
    assert rows.shape == (2, 0, 3)
    assert present.shape == (2, 0)


def test_unknown_item_is_an_error_and_not_the_last_row():
    with pytest.raises(IndexError):
        FeatureTable(torch.eye(3))(torch.tensor([-1]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_copy_gives_the_same_rows(copied):
    table = FeatureTable(torch.eye(3), trainable=True)
    assert_same(copied(table)(torch.arange(3)), table(torch.arange(3)))


# -- gradients and contract -----------------------------------------------------------------------


def test_gradcheck():
    table = FeatureTable(torch.randn(3, 2, dtype=torch.float64), trainable=True)
    items = torch.tensor([[0, 1], [1, 1]])

    def rows(features: Tensor) -> Tensor:
        return functional_call(table, {"features": features}, (items,)).features

    assert torch.autograd.gradcheck(rows, table.features)


@pytest.mark.parametrize("trainable", [False, True])
def test_contract(trainable):
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    assert_block_contract(FeatureTable(features, trainable), torch.tensor([[0, 1], [2, 2]]))


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            torch.ones(3),
            r"Expected features of shape \(V, D_m\) and .*, got \(3,\) and torch\.float32\.",
        ),
        (torch.ones(3, 2, dtype=torch.int64), r"floating dtype, got \(3, 2\) and torch\.int64\."),
        (
            torch.tensor([[1.0, 2.0], [0.0, torch.nan]]),
            r"Expected finite features, got NaN or infinity in row 1\.",
        ),
        (
            torch.tensor([[1.0], [2.0], [-torch.inf], [torch.nan]]),
            r"Expected finite features, got NaN or infinity in row 2\.",
        ),
    ],
)
def test_rejects_bad_features(features, message):
    with pytest.raises(ValueError, match=message):
        FeatureTable(features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_rejects_items_that_are_not_integers(dtype):
    with pytest.raises(ValueError, match=rf"Expected items of dtype torch\.int64, got {dtype}\."):
        FeatureTable(torch.eye(3))(torch.zeros(2, dtype=dtype))


def test_repr():
    assert repr(FeatureTable(torch.ones(5, 2))) == "FeatureTable(5, 2, trainable=False)"


def test_presence_may_be_given() -> None:
    table = FeatureTable(torch.zeros(2, 3), present=torch.tensor([True, False]))
    assert table(torch.tensor([0, 1])).present.tolist() == [True, False]


def test_presence_must_fit_the_items() -> None:
    with pytest.raises(ValueError, match=r"Expected present of shape \(2,\), got \(3,\)\."):
        FeatureTable(torch.ones(2, 3), present=torch.ones(3, dtype=torch.bool))
