"""Tests for mmfuse.losses.supervised."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import SupervisedContrastiveLoss, supervised_contrastive_loss
from mmfuse.testing import assert_block_contract
from tests.contrast import (
    assert_autocast_changes_nothing,
    assert_half_precision_is_summed_in_float32,
    assert_nan_reaches_nothing,
    assert_zero_in_the_graph,
    naive_reduction,
)
from tests.references import cosine, naive_info_nce
from tests.strategies import seeds, sizes

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 3.0])
reductions = st.sampled_from(["mean", "sum", "none"])
forms = st.sampled_from(["out", "in"])


class Batch(NamedTuple):
    features: Tensor  # (B, V, D)
    labels: Tensor  # (B,)
    valid: Tensor  # (B, V)


@st.composite
def batches(draw: st.DrawFn, least: int = 1) -> Batch:
    """Some labels are shared, some unknown; some views are not valid; one vector may be zero."""
    rows, views, dim = draw(st.integers(least, 4)), draw(st.integers(1, 3)), draw(sizes)
    torch.manual_seed(draw(seeds))
    features = torch.randn(rows, views, dim, dtype=torch.float64)
    if draw(st.booleans()):
        features[0, 0] = 0
    labels = torch.tensor([-100, 0, 1, 2])[torch.randint(4, (rows,))]
    return Batch(features, labels, torch.rand(rows, views) < 0.7)


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_loss(
    vectors: Sequence[Sequence[float]],
    alike: Sequence[Sequence[bool]],
    temperature: float,
    form: str,
) -> list[float | None]:
    """One loss a vector; ``alike[i][j]`` is whether j should be found by i.

    The form "out" is the formula of the authors' published code at equal temperatures, too: the
    mean of the log-probabilities over the positives, and then the mean over the anchors.
    """
    losses: list[float | None] = []
    for i, anchor in enumerate(vectors):
        powers = {
            j: math.exp(cosine(anchor, other) / temperature)
            for j, other in enumerate(vectors)
            if j != i
        }
        shares = [powers[j] / sum(powers.values()) for j in powers if alike[i][j]]
        if not shares:
            losses.append(None)
        elif form == "out":
            losses.append(-sum(math.log(share) for share in shares) / len(shares))
        else:
            losses.append(-math.log(sum(shares) / len(shares)))
    return losses


@given(batches(), temperatures, reductions, forms, st.sampled_from(["all", "rows", "views"]))
@settings(max_examples=80)
def test_matches_naive(case, temperature, reduction, form, masked):
    features, labels, valid = case
    rows, views, _ = features.shape
    mask = {"all": None, "rows": valid[:, 0], "views": valid}[masked]
    kept = torch.ones_like(valid) if mask is None else valid[:, :1] if mask.ndim == 1 else valid
    there = [(b, v) for b in range(rows) for v in range(views) if kept.expand_as(valid)[b, v]]
    alike = [
        [a == b or int(labels[a]) == int(labels[b]) != -100 for b, _ in there] for a, _ in there
    ]
    vectors = [features[b, v].tolist() for b, v in there]
    found = dict(zip(there, naive_loss(vectors, alike, temperature, form), strict=True))
    wanted = naive_reduction(
        [found.get((b, v)) for b in range(rows) for v in range(views)], reduction
    )
    result = supervised_contrastive_loss(
        features, labels, temperature=temperature, form=form, reduction=reduction, valid=mask
    )
    shape = (rows, views) if reduction == "none" else ()
    torch.testing.assert_close(result, wanted.reshape(shape))


@given(batches(), forms)
@few
def test_views_are_rows_of_one_label(case, form):
    features, labels, valid = case
    known = torch.where(labels == -100, 7 + torch.arange(len(labels)), labels)
    rows = supervised_contrastive_loss(
        features.flatten(0, 1),
        known.repeat_interleave(features.shape[1]),
        form=form,
        valid=valid.flatten(),
    )
    views = supervised_contrastive_loss(features, labels, form=form, valid=valid)
    torch.testing.assert_close(views, rows)


@given(batches(), forms)
@few
def test_module_equals_function(case, form):
    features, labels, valid = case
    module = SupervisedContrastiveLoss(0.3, form=form, reduction="sum")
    wanted = supervised_contrastive_loss(
        features, labels, temperature=0.3, form=form, reduction="sum", valid=valid
    )
    assert torch.equal(module(features, labels, valid=valid), wanted)
    assert torch.equal(copy.deepcopy(module)(features, labels, valid=valid), wanted)


# -- limits ---------------------------------------------------------------------------------------


@given(st.integers(1, 4), sizes, seeds, temperatures, forms)
@few
def test_different_labels_and_two_views_are_nt_xent(rows, dim, seed, temperature, form):
    torch.manual_seed(seed)
    features = torch.randn(rows, 2, dim, dtype=torch.float64)
    one, other = features.unbind(1)
    query, key = torch.cat([one, other]).tolist(), torch.cat([other, one]).tolist()
    negatives = [
        [query[j] for j in range(2 * rows) if j not in (i, (i + rows) % (2 * rows))]
        for i in range(2 * rows)
    ]
    losses = naive_info_nce(query, key, negatives, temperature)
    result = supervised_contrastive_loss(
        features, torch.arange(rows), temperature=temperature, form=form
    )
    wanted = torch.tensor(sum(losses) / len(losses), dtype=torch.float64)
    torch.testing.assert_close(result, wanted)


@given(batches())
@few
def test_in_is_never_larger_than_out(case):
    features, labels, valid = case
    loss = partial(supervised_contrastive_loss, features, labels, reduction="none", valid=valid)
    assert (loss(form="in") <= loss(form="out") + 1e-9).all()


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_rows_that_are_all_alike_are_told_apart_by_chance(form, temperature, row):
    loss = supervised_contrastive_loss(
        row.expand(5, 3), torch.tensor([0, 0, 0, 1, 1]), temperature=temperature, form=form
    )
    torch.testing.assert_close(loss, torch.tensor(math.log(4)))


def test_cold_loss_of_perfect_classes_is_the_share_of_each_positive():
    features = torch.eye(2).repeat_interleave(3, 0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    loss = supervised_contrastive_loss(features, labels, temperature=0.01)
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))


def test_a_batch_of_one_label_has_no_negatives_and_a_loss():
    loss = supervised_contrastive_loss(torch.eye(4), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))


# -- properties: labels and masks -----------------------------------------------------------------


@given(batches(), forms)
@few
def test_unknown_is_a_class_of_its_own(case, form):
    features, labels, valid = case
    own = torch.where(labels == -100, 7 + torch.arange(len(labels)), labels)
    loss = partial(supervised_contrastive_loss, features, form=form, valid=valid)
    assert torch.equal(loss(labels), loss(own))


def test_unknown_row_is_a_negative_of_others():
    features = torch.eye(3)[[0, 0, 1]]
    known = supervised_contrastive_loss(features, torch.tensor([4, 4, -100]), temperature=1.0)
    torch.testing.assert_close(known, torch.tensor(math.log(1 + math.exp(-1))))


@given(batches(), forms)
@few
def test_names_of_labels_do_not_matter(case, form):
    features, labels, valid = case
    other = torch.where(labels == -100, labels, 100 - 7 * labels)
    loss = partial(supervised_contrastive_loss, features, form=form, valid=valid)
    assert torch.equal(loss(labels), loss(other))


@given(batches(least=2), forms)
@few
def test_permuting_rows_permutes_losses(case, form):
    features, labels, valid = case
    order = torch.randperm(len(labels))
    loss = partial(supervised_contrastive_loss, form=form, reduction="none")
    permuted = loss(features[order], labels[order], valid=valid[order])
    torch.testing.assert_close(permuted, loss(features, labels, valid=valid)[order])


@given(batches(), forms)
@few
def test_invalid_row_is_as_if_never_given(case, form):
    features, labels, valid = case
    rows = valid[:, 0]
    everything = supervised_contrastive_loss(features, labels, form=form, valid=rows)
    only_valid = supervised_contrastive_loss(features[rows], labels[rows], form=form)
    torch.testing.assert_close(everything, only_valid)


@given(batches(), forms, st.booleans())
@few
def test_nan_of_what_is_not_valid_reaches_nothing(case, form, by_row):
    features, labels, valid = case
    mask = valid[:, 0] if by_row else valid
    loss = partial(supervised_contrastive_loss, labels=labels, form=form, valid=mask)
    assert_nan_reaches_nothing(loss, [features], mask)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", ["out", "in"])
def test_nobody_with_a_positive_has_loss_zero_in_the_graph(reduction, form):
    loss = partial(supervised_contrastive_loss, form=form, reduction=reduction)
    different = torch.arange(4)
    assert_zero_in_the_graph(partial(loss, labels=different), torch.randn(4, 3))
    assert_zero_in_the_graph(partial(loss, labels=different[:1]), torch.randn(1, 3))
    assert_zero_in_the_graph(partial(loss, labels=different[:0]), torch.randn(0, 2, 3))
    assert_zero_in_the_graph(partial(loss, labels=different), torch.randn(4, 0, 3))
    nobody = partial(loss, labels=different // 2, valid=torch.zeros(4, dtype=torch.bool))
    assert_zero_in_the_graph(nobody, torch.randn(4, 2, 3))


def test_anchor_without_a_positive_does_not_count_and_is_still_a_negative():
    features, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 1, 2])
    losses = supervised_contrastive_loss(features, labels, reduction="none")
    assert losses[4] == 0
    torch.testing.assert_close(supervised_contrastive_loss(features, labels), losses.sum() / 4)
    without = supervised_contrastive_loss(features[:4], labels[:4], reduction="none")
    assert (losses[:4] > without).all()


# -- properties: numbers --------------------------------------------------------------------------


@given(batches(), st.floats(-4, 4))
@few
def test_length_of_a_vector_does_not_matter(case, exponent):
    features, labels, valid = case
    loss = partial(supervised_contrastive_loss, labels=labels, valid=valid)
    torch.testing.assert_close(loss(10**exponent * features), loss(features))


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, form):
    features, labels = torch.randn(5, 2, 3), torch.tensor([0, 0, 1, 2, -100])
    features[0, 0] = 0
    features[1, 1] = features[1, 0]
    loss = partial(supervised_contrastive_loss, labels=labels, temperature=0.01, form=form)
    assert_half_precision_is_summed_in_float32(loss, dtype, features)
    assert_autocast_changes_nothing(loss, features)


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["out", "in"])
def test_learned_temperature_gets_a_finite_gradient_beside_masks(form):
    features, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])

    def loss(temperature: Tensor) -> Tensor:
        valid = labels != 2
        return supervised_contrastive_loss(
            features, labels, temperature=temperature, form=form, valid=valid
        )

    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, temperature)


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3)])
def test_gradcheck(form, shape):
    labels = torch.tensor([0, 0, 1, -100, 0])
    valid = torch.tensor([True, True, True, True, False])
    loss = partial(
        supervised_contrastive_loss, labels=labels, temperature=0.5, form=form, valid=valid
    )
    features = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, features)


@pytest.mark.parametrize("form", ["out", "in"])
def test_contract(form):
    labels, valid = torch.tensor([0, 0, 1, -100]), torch.tensor([True, True, True, False])
    loss = SupervisedContrastiveLoss(form=form)
    assert_block_contract(loss, torch.randn(4, 2, 3), labels, keywords={"valid": valid})
    assert_block_contract(loss, torch.randn(4, 3), labels)


# -- errors and repr ------------------------------------------------------------------------------

FEATURES, LABELS = torch.ones(4, 2, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((FEATURES[0, 0], LABELS), {}, r"Expected features of shape \(B, D\), got \(3,\)\."),
        ((FEATURES[None], LABELS), {}, r"Expected features of shape \(B, D\), got \(1, 4, 2, 3\)"),
        ((FEATURES, LABELS[:2]), {}, r"Expected labels of shape \(4,\), got \(2,\)\."),
        ((FEATURES, LABELS.float()), {}, r"Expected labels of an integer dtype, got torch\.float"),
        ((FEATURES, LABELS), {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ((FEATURES, LABELS), {"form": "on"}, r"Expected form to be one of 'out', 'in', got 'on'"),
        ((FEATURES, LABELS), {"reduction": "max"}, r"Expected reduction to be one of .* got 'max'"),
        ((FEATURES, LABELS), {"valid": torch.ones(4)}, r"Expected valid of dtype torch\.bool"),
        (
            (FEATURES, LABELS),
            {"valid": torch.ones(4, 3, dtype=torch.bool)},
            r"Expected valid of shape \(4, 2\), got \(4, 3\)\.",
        ),
        (
            (FEATURES[:, 0], LABELS),
            {"valid": torch.ones(3, dtype=torch.bool)},
            r"Expected valid of shape \(4,\), got \(3,\)\.",
        ),
    ],
)
def test_rejects_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        supervised_contrastive_loss(*inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.nan}, r"Expected temperature > 0, got nan\."),
        ({"form": ""}, r"Expected form to be one of 'out', 'in', got ''\."),
        ({"reduction": ""}, r"Expected reduction to be one of 'mean', 'sum', 'none', got ''\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        SupervisedContrastiveLoss(**options)


def test_repr():
    wanted = "SupervisedContrastiveLoss(temperature=0.1, form='out', reduction='mean')"
    assert repr(SupervisedContrastiveLoss()) == wanted
