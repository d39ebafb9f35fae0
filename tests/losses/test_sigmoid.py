"""Tests for mmfuse.losses.sigmoid."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import SigmoidContrastiveLoss, sigmoid_contrastive_loss
from mmfuse.testing import assert_block_contract
from tests.contrast import (
    assert_autocast_changes_nothing,
    assert_half_precision_is_summed_in_float32,
    assert_nan_reaches_nothing,
    assert_zero_in_the_graph,
    naive_reduction,
)
from tests.references import cosine
from tests.strategies import seeds, sizes

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 3.0])
biases = st.sampled_from([-10.0, 0.0, 1.5])
reductions = st.sampled_from(["mean", "sum", "none"])
same_ids = st.sampled_from(["ignore", "positive"])


class Batch(NamedTuple):
    query: Tensor  # (B, D)
    key: Tensor  # (B, D)
    ids: Tensor  # (B,)
    valid: Tensor  # (B,)
    present: Tensor  # (B, 2)


@st.composite
def batches(draw: st.DrawFn, least: int = 1) -> Batch:
    """Rows of which some share an id, some are not valid and some have one side only."""
    rows, dim = draw(st.integers(least, 5)), draw(sizes)
    torch.manual_seed(draw(seeds))
    query, key = torch.randn(2, rows, dim, dtype=torch.float64)
    if draw(st.booleans()):
        query[0] = 0
    present = torch.rand(rows, 2) < 0.7
    return Batch(query, key, torch.randint(3, (rows,)), torch.rand(rows) < 0.7, present)


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_pair(query: Tensor, key: Tensor, same: bool, temperature: float, bias: float) -> float:
    """One pair: -log sigmoid of its logit, or of the opposite."""
    logit = cosine(query.tolist(), key.tolist()) / temperature + bias
    return math.log(1 + math.exp(-logit if same else logit))


@given(batches(), temperatures, biases, reductions, same_ids, st.tuples(*[st.booleans()] * 3))
@settings(max_examples=80)
def test_matches_naive_pair_by_pair(case, temperature, bias, reduction, same_id, given_):
    with_ids, with_valid, with_present = given_
    query, key, ids, valid, present = case
    rows = range(len(query))
    ids = ids if with_ids else torch.arange(len(query))
    valid = valid if with_valid else torch.ones_like(valid)
    present = present if with_present else torch.ones_like(present)
    losses: list[float | None] = []
    for i in rows:
        pairs = []
        for j in rows:
            alike = i != j and ids[i] == ids[j]
            left_out = alike and same_id == "ignore"
            if valid[i] and valid[j] and present[i, 0] and present[j, 1] and not left_out:
                pairs.append(naive_pair(query[i], key[j], i == j or alike, temperature, bias))
        losses.append(sum(pairs) if valid[i] and present[i].any() else None)
    result = sigmoid_contrastive_loss(
        query,
        key,
        temperature=temperature,
        bias=bias,
        reduction=reduction,
        ids=ids if with_ids else None,
        same_id=same_id,
        valid=valid if with_valid else None,
        present=present if with_present else None,
    )
    torch.testing.assert_close(result, naive_reduction(losses, reduction))


@given(batches(), temperatures, biases, same_ids)
@few
def test_module_equals_function(case, temperature, bias, same_id):
    query, key, ids, valid, present = case
    masks = {"ids": ids, "valid": valid, "present": present}
    module = SigmoidContrastiveLoss(
        temperature, bias, reduction="sum", same_id=same_id, dtype=torch.float64
    )
    wanted = sigmoid_contrastive_loss(
        query,
        key,
        temperature=temperature,
        bias=bias,
        reduction="sum",
        same_id=same_id,
        **masks,
    )
    torch.testing.assert_close(module(query, key, **masks), wanted)
    assert torch.equal(copy.deepcopy(module)(query, key, **masks), module(query, key, **masks))


# -- what is learned ------------------------------------------------------------------------------


def test_starts_as_in_the_paper():
    loss = SigmoidContrastiveLoss()
    torch.testing.assert_close(1 / loss.temperature(), torch.tensor(10.0))
    assert loss.bias == -10
    assert {name for name, _ in loss.named_parameters()} == {"log_temperature", "bias"}


def test_reset_returns_to_the_start():
    loss = SigmoidContrastiveLoss(0.5, -2.0)
    with torch.no_grad():
        loss.log_temperature.fill_(3)
        loss.bias.fill_(3)
    loss.reset_parameters()
    torch.testing.assert_close(loss.temperature(), torch.tensor(0.5))
    assert loss.bias == -2


def test_learning_separates_what_can_be_separated():
    loss = SigmoidContrastiveLoss()
    features = torch.eye(8)
    before = loss(features, features)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss(features, features).backward()
        optimizer.step()
    assert loss(features, features) < before / 10
    assert loss.temperature() < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_module_in_half_precision_computes_in_float32(dtype):
    loss, query = SigmoidContrastiveLoss(0.01, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    value = loss(query, query)
    value.backward()
    assert value.dtype == torch.float32
    assert loss.bias.grad.dtype == dtype
    assert loss.log_temperature.grad.isfinite()
    wanted = sigmoid_contrastive_loss(
        query.float(),
        query.float(),
        temperature=loss.log_temperature.detach().squeeze(0).float().exp(),
        bias=-10.0,
    )
    torch.testing.assert_close(value.detach(), wanted)


# -- properties: masks ----------------------------------------------------------------------------


@given(batches(), same_ids)
@few
def test_sides_may_be_exchanged(case, same_id):
    query, key, ids, valid, present = case
    loss = partial(sigmoid_contrastive_loss, ids=ids, same_id=same_id, valid=valid)
    torch.testing.assert_close(
        loss(query, key, present=present), loss(key, query, present=present.flip(1))
    )


@given(batches(), same_ids)
@few
def test_invalid_row_is_as_if_never_given(case, same_id):
    query, key, ids, valid, present = case
    loss = partial(sigmoid_contrastive_loss, same_id=same_id)
    everything = loss(query, key, ids=ids, valid=valid, present=present)
    only_valid = loss(query[valid], key[valid], ids=ids[valid], present=present[valid])
    torch.testing.assert_close(everything, only_valid)


@given(batches(least=2), same_ids)
@few
def test_permuting_rows_permutes_losses(case, same_id):
    order = torch.randperm(len(case.query))
    loss = partial(sigmoid_contrastive_loss, same_id=same_id, reduction="none")

    def losses(batch: Batch) -> Tensor:
        query, key, ids, valid, present = batch
        return loss(query, key, ids=ids, valid=valid, present=present)

    permuted = losses(Batch(*(tensor[order] for tensor in case)))
    torch.testing.assert_close(permuted, losses(case)[order])


@given(batches(), same_ids)
@few
def test_nan_of_what_is_not_there_reaches_nothing(case, same_id):
    query, key, ids, valid, present = case
    loss = partial(sigmoid_contrastive_loss, ids=ids, same_id=same_id, valid=valid, present=present)
    masks = (valid & present[:, 0], valid & present[:, 1])
    assert_nan_reaches_nothing(loss, [query, key], *masks)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_compare_is_zero_in_the_graph(reduction):
    loss = partial(sigmoid_contrastive_loss, reduction=reduction)
    pair = torch.randn(2, 4, 3)
    nobody, queries = torch.zeros(4, dtype=torch.bool), torch.tensor([[True, False]] * 4)
    assert_zero_in_the_graph(partial(loss, valid=nobody), *pair)
    assert_zero_in_the_graph(partial(loss, present=queries), *pair)
    assert_zero_in_the_graph(loss, *torch.randn(2, 0, 3))


def test_row_with_one_side_meets_the_others():
    query, key = torch.randn(2, 3, 4)
    present = torch.tensor([[True, True], [True, True], [True, False]])
    losses = sigmoid_contrastive_loss(query, key, present=present, reduction="none")
    two = sigmoid_contrastive_loss(query[:2], key[:2], reduction="none")
    torch.testing.assert_close(losses[:2], two)
    assert losses[2] > 0


# -- properties: numbers --------------------------------------------------------------------------


@given(batches(), st.floats(-4, 4), st.floats(-4, 4))
@few
def test_length_of_a_vector_does_not_matter(case, one, other):
    longer = sigmoid_contrastive_loss(10**one * case.query, 10**other * case.key)
    torch.testing.assert_close(longer, sigmoid_contrastive_loss(case.query, case.key))


@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_rows_that_are_all_alike_stay_finite_when_cold(row):
    logit = float(row[0]) * 100 - 10
    loss = sigmoid_contrastive_loss(row.expand(4, 3), row.expand(4, 3), temperature=0.01)
    wanted = math.log1p(math.exp(-logit)) + 3 * math.log1p(math.exp(logit))
    torch.testing.assert_close(loss, torch.tensor(wanted))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    query, key = torch.randn(2, 5, 3)
    query[1] = 0
    loss = partial(sigmoid_contrastive_loss, temperature=0.01)
    assert_half_precision_is_summed_in_float32(loss, dtype, query, key)
    assert_autocast_changes_nothing(loss, query, key)


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("same_id", ["ignore", "positive"])
def test_gradcheck(same_id):
    masks = {
        "ids": torch.tensor([0, 1, 0, 2]),
        "valid": torch.tensor([True, True, True, False]),
        "present": torch.tensor([[True, True], [True, False], [True, True], [True, True]]),
    }

    def loss(query: Tensor, key: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_contrastive_loss(
            query, key, temperature=temperature, bias=bias, same_id=same_id, **masks
        )

    inputs = (*torch.randn(2, 4, 3, dtype=torch.float64), *torch.tensor([0.5, -1.0]).double())
    assert torch.autograd.gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("same_id", ["ignore", "positive"])
def test_contract(same_id):
    masks = {
        "ids": torch.tensor([0, 0, 1, 2]),
        "valid": torch.tensor([True, True, True, False]),
        "present": torch.tensor([[True, True], [True, False], [True, True], [True, True]]),
    }
    loss = SigmoidContrastiveLoss(same_id=same_id)
    assert_block_contract(loss, *torch.randn(2, 4, 3), keywords=masks)
    assert_block_contract(loss, *torch.randn(2, 4, 3))


# -- errors and repr ------------------------------------------------------------------------------

QUERY = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((QUERY[0],) * 2, {}, r"Expected query of shape \(B, D\), got \(3,\)\."),
        ((QUERY, QUERY[:1]), {}, r"Expected positive_key of shape \(4, 3\), got \(1, 3\)\."),
        ((QUERY,) * 2, {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        (
            (QUERY,) * 2,
            {"temperature": QUERY},
            r"Expected temperature of one element, got shape \(4, 3\)",
        ),
        ((QUERY,) * 2, {"bias": QUERY[0]}, r"Expected bias of shape \(\), got \(3,\)\."),
        ((QUERY,) * 2, {"reduction": "max"}, r"Expected reduction to be one of .*, got 'max'\."),
        (
            (QUERY,) * 2,
            {"same_id": "negative"},
            r"Expected same_id to be one of 'ignore', 'positive', got 'negative'\.",
        ),
        ((QUERY,) * 2, {"ids": torch.ones(4)}, r"Expected ids of an integer dtype, got torch\."),
        (
            (QUERY,) * 2,
            {"ids": torch.arange(3)},
            r"Expected ids of shape \(4,\), got \(3,\)\.",
        ),
        ((QUERY,) * 2, {"valid": torch.ones(4)}, r"Expected valid of dtype torch\.bool, got"),
        (
            (QUERY,) * 2,
            {"present": torch.ones(4, 3, dtype=torch.bool)},
            r"Expected present of shape \(4, 2\), got \(4, 3\)\.",
        ),
    ],
)
def test_rejects_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_contrastive_loss(*inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"Expected temperature > 0, got -1\.0\."),
        ({"reduction": ""}, r"Expected reduction to be one of 'mean', 'sum', 'none', got ''\."),
        ({"same_id": ""}, r"Expected same_id to be one of 'ignore', 'positive', got ''\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        SigmoidContrastiveLoss(**options)


def test_repr():
    wanted = (
        "SigmoidContrastiveLoss(temperature=0.1, bias=-10.0, reduction='mean', same_id='ignore')"
    )
    assert repr(SigmoidContrastiveLoss()) == wanted
