"""Tests for mmfuse.losses.debiased."""

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

from mmfuse.losses import DebiasedInfoNCELoss, debiased_info_nce, info_nce
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
shares = st.sampled_from([0.0, 0.1, 0.5])
betas = st.sampled_from([0.0, 0.5, 2.0])
reductions = st.sampled_from(["mean", "sum", "none"])


class Batch(NamedTuple):
    query: Tensor  # (B, D)
    key: Tensor  # (B, D)
    ids: Tensor  # (B,)
    valid: Tensor  # (B,)


@st.composite
def batches(draw: st.DrawFn, least: int = 1) -> Batch:
    """Rows of which some share an id and some are not valid; a query may be zero."""
    rows, dim = draw(st.integers(least, 5)), draw(sizes)
    torch.manual_seed(draw(seeds))
    query, key = torch.randn(2, rows, dim, dtype=torch.float64)
    if draw(st.booleans()):
        query[0] = 0
    return Batch(query, key, torch.randint(3, (rows,)), torch.rand(rows) < 0.7)


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_row(
    query: Sequence[float],
    key: Sequence[float],
    negatives: Sequence[Sequence[float]],
    temperature: float,
    tau_plus: float,
    beta: float,
) -> float:
    """One row, with exponentials and not their logarithms.

    These are the numbers of the authors' published code, which gives each negative the weight
    exp(s / temperature) ** beta, sums, divides by the mean of the weights, takes away
    ``tau_plus * n * positive``, divides by ``1 - tau_plus`` and clamps.
    """
    if not negatives:
        return 0.0
    positive = math.exp(cosine(query, key) / temperature)
    powers = [math.exp(cosine(query, other) / temperature) for other in negatives]
    weights = [power**beta for power in powers]
    number = len(powers)
    total = sum(w * p for w, p in zip(weights, powers, strict=True)) / (sum(weights) / number)
    rest = (total - tau_plus * number * positive) / (1 - tau_plus)
    rest = max(rest, number * math.exp(-1 / temperature))
    return -math.log(positive / (positive + rest))


@given(batches(), temperatures, shares, betas, reductions, st.tuples(*[st.booleans()] * 3))
@settings(max_examples=80)
def test_in_batch_matches_naive(case, temperature, tau_plus, beta, reduction, given_):
    symmetric, with_ids, with_valid = given_
    query, key, ids, valid = case
    rows = range(len(query))
    all_ids = ids if with_ids else torch.arange(len(query))
    all_valid = valid if with_valid else torch.ones_like(valid)

    def losses(query: Tensor, key: Tensor) -> list[float | None]:
        found: list[float | None] = []
        for i in rows:
            others = [j for j in rows if j != i and all_valid[j] and all_ids[j] != all_ids[i]]
            listed = [key[j].tolist() for j in others]
            options = temperature, tau_plus, beta
            loss = naive_row(query[i].tolist(), key[i].tolist(), listed, *options)
            found.append(loss if all_valid[i] else None)
        return found

    wanted = naive_reduction(losses(query, key), reduction)
    if symmetric:
        wanted = (wanted + naive_reduction(losses(key, query), reduction)) / 2
    result = debiased_info_nce(
        query,
        key,
        temperature=temperature,
        tau_plus=tau_plus,
        beta=beta,
        reduction=reduction,
        ids=ids if with_ids else None,
        valid=valid if with_valid else None,
        symmetric=symmetric,
    )
    torch.testing.assert_close(result, wanted)


@given(batches(), temperatures, shares, betas, st.integers(0, 4), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=80)
def test_explicit_negatives_match_naive(case, temperature, tau_plus, beta, number, given_):
    own, with_ids, own_ids = given_
    query, key, ids, valid = case
    rows, dim = query.shape
    negatives = torch.randn((rows, number, dim) if own else (number, dim), dtype=query.dtype)
    key_ids = torch.randint(3, (rows, number) if own or own_ids else (number,))
    losses: list[float | None] = []
    for i in range(rows):
        there, about = negatives.expand(rows, number, dim)[i], key_ids.expand(rows, number)[i]
        listed = [
            other.tolist()
            for other, name in zip(there, about, strict=True)
            if not with_ids or name != ids[i]
        ]
        options = temperature, tau_plus, beta
        loss = naive_row(query[i].tolist(), key[i].tolist(), listed, *options)
        losses.append(loss if valid[i] else None)
    result = debiased_info_nce(
        query,
        key,
        negatives,
        temperature=temperature,
        tau_plus=tau_plus,
        beta=beta,
        ids=ids if with_ids else None,
        key_ids=key_ids if with_ids else None,
        valid=valid,
    )
    torch.testing.assert_close(result, naive_reduction(losses, "mean"))


@given(batches(), st.booleans())
@few
def test_module_equals_function(case, symmetric):
    query, key, ids, valid = case
    module = DebiasedInfoNCELoss(0.3, tau_plus=0.2, beta=0.5, reduction="sum", symmetric=symmetric)
    wanted = debiased_info_nce(
        query,
        key,
        temperature=0.3,
        tau_plus=0.2,
        beta=0.5,
        reduction="sum",
        ids=ids,
        valid=valid,
        symmetric=symmetric,
    )
    assert torch.equal(module(query, key, ids=ids, valid=valid), wanted)
    assert torch.equal(copy.deepcopy(module)(query, key, ids=ids, valid=valid), wanted)


# -- limits ---------------------------------------------------------------------------------------


@given(batches(), temperatures, reductions, st.booleans())
@few
def test_without_correction_it_is_info_nce(case, temperature, reduction, symmetric):
    query, key, ids, valid = case
    options = {
        "temperature": temperature,
        "reduction": reduction,
        "ids": ids,
        "valid": valid,
        "symmetric": symmetric,
    }
    result = debiased_info_nce(query, key, tau_plus=0.0, beta=0.0, **options)
    torch.testing.assert_close(result, info_nce(query, key, **options))


@given(batches(), temperatures, st.integers(0, 4), st.booleans())
@few
def test_without_correction_it_is_info_nce_over_explicit_negatives(case, temperature, number, own):
    query, key, _, valid = case
    rows, dim = query.shape
    negatives = torch.randn((rows, number, dim) if own else (number, dim), dtype=query.dtype)
    options = {"temperature": temperature, "valid": valid}
    result = debiased_info_nce(query, key, negatives, tau_plus=0.0, beta=0.0, **options)
    torch.testing.assert_close(result, info_nce(query, key, negatives, **options))


@given(batches())
@few
def test_large_beta_leaves_the_hardest_negative(case):
    query, key, _, _ = case
    rows = len(query)
    loss = debiased_info_nce(query, key, tau_plus=0.0, beta=1e6, reduction="none")
    cosines = torch.tensor(
        [[cosine(q.tolist(), k.tolist()) for k in key] for q in query], dtype=torch.float64
    )
    hardest = cosines.masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf).amax(1)
    wanted = ((rows - 1) * ((hardest - cosines.diagonal()) / 0.1).exp() + 1).log()
    torch.testing.assert_close(loss, wanted if rows > 1 else torch.zeros_like(wanted))


@given(batches(), temperatures)
@few
def test_harder_negatives_cost_more(case, temperature):
    loss = partial(debiased_info_nce, case.query, case.key, temperature=temperature)
    soft, hard = (loss(tau_plus=0.0, beta=beta, reduction="none") for beta in (0.0, 1.0))
    assert (hard >= soft - 1e-9).all()


def test_negatives_that_are_positives_are_taken_away_down_to_the_least():
    same = torch.ones(4, 3)  # the mean negative is a positive: g = (1 - tau_plus) / (1 - tau_plus)
    loss = debiased_info_nce(same, same, tau_plus=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(1 + 3)))
    # cosines 1 with the own key and 0 with others: nothing is left but the least, exp(-1 / 0.1)
    loss = debiased_info_nce(torch.eye(4), torch.eye(4), tau_plus=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log1p(3 * math.exp(-20))))


def test_gradient_stops_at_the_least():
    query = torch.eye(4).requires_grad_()  # of exp(99), which float32 does not have
    debiased_info_nce(query, torch.eye(4), tau_plus=0.5, temperature=0.01).backward()
    assert query.grad.isfinite().all()


# -- properties: masks ----------------------------------------------------------------------------


@given(batches(), betas, st.booleans())
@few
def test_invalid_row_is_as_if_never_given(case, beta, symmetric):
    query, key, ids, valid = case
    loss = partial(debiased_info_nce, beta=beta, symmetric=symmetric)
    everything = loss(query, key, ids=ids, valid=valid)
    only_valid = loss(query[valid], key[valid], ids=ids[valid])
    torch.testing.assert_close(everything, only_valid)


@given(batches(least=2), betas, st.booleans())
@few
def test_permuting_rows_permutes_losses(case, beta, symmetric):
    query, key, ids, valid = case
    order = torch.randperm(len(query))
    loss = partial(debiased_info_nce, beta=beta, symmetric=symmetric, reduction="none")
    permuted = loss(query[order], key[order], ids=ids[order], valid=valid[order])
    torch.testing.assert_close(permuted, loss(query, key, ids=ids, valid=valid)[order])


@given(batches(), betas)
@few
def test_permuting_negatives_changes_nothing(case, beta):
    query, key, ids, _ = case
    negatives, key_ids = torch.randn(5, query.shape[1]).double(), torch.randint(3, (5,))
    order = torch.randperm(5)
    loss = partial(debiased_info_nce, query, key, beta=beta, ids=ids)
    permuted = loss(negatives[order], key_ids=key_ids[order])
    torch.testing.assert_close(permuted, loss(negatives, key_ids=key_ids))


@given(batches(), betas, st.booleans(), st.booleans())
@few
def test_nan_of_an_invalid_row_reaches_nothing(case, beta, symmetric, own_negatives):
    query, key, _, valid = case
    tensors = [query, key]
    if own_negatives:
        tensors.append(torch.randn(len(query), 2, query.shape[1], dtype=query.dtype))
    symmetric = symmetric and not own_negatives
    loss = partial(debiased_info_nce, beta=beta, valid=valid, symmetric=symmetric)
    assert_nan_reaches_nothing(loss, tensors, valid)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
def test_nothing_to_tell_apart_is_zero_in_the_graph(reduction, tau_plus):
    loss = partial(debiased_info_nce, tau_plus=tau_plus, reduction=reduction, beta=1.0)
    pair = torch.randn(2, 4, 3)
    nobody = torch.zeros(4, dtype=torch.bool)
    assert_zero_in_the_graph(partial(loss, valid=nobody), *pair)
    assert_zero_in_the_graph(partial(loss, valid=nobody, symmetric=True), *pair)
    assert_zero_in_the_graph(partial(loss, ids=torch.zeros(4, dtype=torch.int64)), *pair)
    assert_zero_in_the_graph(loss, *pair, torch.randn(0, 3))
    assert_zero_in_the_graph(loss, *pair, torch.randn(4, 0, 3))
    assert_zero_in_the_graph(loss, *torch.randn(2, 1, 3))
    assert_zero_in_the_graph(loss, *torch.randn(2, 0, 3))


# -- properties: numbers --------------------------------------------------------------------------


@given(batches(), st.floats(-4, 4), st.floats(-4, 4))
@few
def test_length_of_a_vector_does_not_matter(case, one, other):
    longer = debiased_info_nce(10**one * case.query, 10**other * case.key)
    torch.testing.assert_close(longer, debiased_info_nce(case.query, case.key))


def test_loss_of_a_good_match_is_no_difference_of_large_numbers():
    query, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    loss = debiased_info_nce(query, query, negative, temperature=0.05, tau_plus=0.0)
    torch.testing.assert_close(loss, torch.tensor(math.log1p(math.exp(-20))), atol=0, rtol=1e-5)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1])
def test_learned_temperature_gets_a_finite_gradient_beside_masked_negatives(tau_plus):
    query, key = torch.randn(2, 4, 3, dtype=torch.float64)
    ids = torch.tensor([0, 0, 1, 2])

    def loss(temperature: Tensor) -> Tensor:
        return debiased_info_nce(
            query, key, temperature=temperature, tau_plus=tau_plus, beta=1.0, ids=ids
        )

    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, temperature)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_rows_that_are_all_alike_are_told_apart_by_chance(row, temperature, beta):
    same = row.expand(5, 3).clone().requires_grad_()
    loss = debiased_info_nce(same, same, temperature=temperature, beta=beta)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(math.log(5)), atol=1e-4, rtol=1e-4)
    assert same.grad.isfinite().all()


@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype, tau_plus):
    query, key = torch.randn(2, 6, 3)
    query[1], key[2] = 0, 0
    loss = partial(debiased_info_nce, temperature=0.01, tau_plus=tau_plus, beta=1.0)
    assert_half_precision_is_summed_in_float32(loss, dtype, query, key)
    assert_autocast_changes_nothing(loss, query, key)
    assert_autocast_changes_nothing(loss, query, key, torch.randn(4, 3))


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
def test_gradcheck(beta, tau_plus):
    ids, valid = torch.tensor([0, 1, 0, 2]), torch.tensor([True, True, True, False])
    options = {"ids": ids, "valid": valid, "beta": beta, "tau_plus": tau_plus, "temperature": 0.5}
    pair = [tensor.requires_grad_() for tensor in torch.randn(2, 4, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(partial(debiased_info_nce, symmetric=True, **options), pair)
    negatives = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    explicit = partial(debiased_info_nce, key_ids=torch.tensor([0, 1, 2, 3, 0]), **options)
    assert torch.autograd.gradcheck(explicit, [*pair, negatives])


def test_contract():
    masks = {"ids": torch.tensor([0, 0, 1, 2]), "valid": torch.tensor([True, True, True, False])}
    query, key = torch.randn(2, 4, 3)
    loss = DebiasedInfoNCELoss(beta=1.0, symmetric=True)
    assert_block_contract(loss, query, key, keywords=masks)
    masks["key_ids"] = torch.tensor([0, 1, 2])
    explicit = DebiasedInfoNCELoss(beta=1.0)
    assert_block_contract(explicit, query, key, torch.randn(3, 3), keywords=masks)
    assert_block_contract(explicit, query, key, torch.randn(4, 2, 3))


# -- errors and repr ------------------------------------------------------------------------------

QUERY, IDS = torch.ones(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((QUERY[0],) * 2, {}, r"Expected query of shape \(B, D\), got \(3,\)\."),
        ((QUERY, QUERY[:1]), {}, r"Expected positive_key of shape \(4, 3\), got \(1, 3\)\."),
        ((QUERY,) * 2, {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ((QUERY,) * 2, {"tau_plus": 1.0}, r"Expected 0 <= tau_plus < 1, got 1\.0\."),
        ((QUERY,) * 2, {"tau_plus": -0.1}, r"Expected 0 <= tau_plus < 1, got -0\.1\."),
        ((QUERY,) * 2, {"beta": -1.0}, r"Expected 0 <= beta < inf, got -1\.0\."),
        ((QUERY,) * 2, {"reduction": "max"}, r"Expected reduction to be one of .*, got 'max'\."),
        ((QUERY,) * 2, {"valid": torch.ones(4)}, r"Expected valid of dtype torch\.bool, got"),
        ((QUERY,) * 2, {"ids": IDS[:3]}, r"Expected ids of shape \(4,\), got \(3,\)\."),
        (
            (QUERY,) * 2,
            {"ids": IDS, "key_ids": IDS},
            r"key_ids with ids and negative_keys only, got \['ids', 'key_ids'\]\.",
        ),
        (
            (QUERY,) * 3,
            {"ids": IDS},
            r"key_ids with ids and negative_keys only, got \['ids', 'negative_keys'\]\.",
        ),
        (
            (QUERY,) * 3,
            {"key_ids": IDS},
            r"key_ids with ids and negative_keys only, got \['key_ids', 'negative_keys'\]\.",
        ),
        (
            (QUERY, QUERY, QUERY[:, :2]),
            {},
            r"Expected negative_keys of shape \(N, 3\), got \(4, 2\)\.",
        ),
        (
            (QUERY, QUERY, torch.ones(3, 2, 3)),
            {},
            r"Expected negative_keys of shape \(4, N, 3\), got \(3, 2, 3\)\.",
        ),
        (
            (QUERY, QUERY, torch.ones(2, 3)),
            {"ids": IDS, "key_ids": IDS},
            r"Expected key_ids of shape \(2,\), got \(4,\)\.",
        ),
        (
            (QUERY, QUERY, torch.ones(4, 2, 3)),
            {"ids": IDS, "key_ids": IDS[:2]},
            r"Expected key_ids of shape \(4, 2\), got \(2,\)\.",
        ),
        (
            (QUERY,) * 3,
            {"symmetric": True},
            r"Expected symmetric=False with negative_keys, got symmetric=True\.",
        ),
    ],
)
def test_rejects_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        debiased_info_nce(*inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"Expected temperature > 0, got -1\.0\."),
        ({"tau_plus": math.nan}, r"Expected 0 <= tau_plus < 1, got nan\."),
        ({"beta": math.inf}, r"Expected 0 <= beta < inf, got inf\."),
        ({"reduction": ""}, r"Expected reduction to be one of 'mean', 'sum', 'none', got ''\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        DebiasedInfoNCELoss(**options)


def test_repr():
    wanted = (
        "DebiasedInfoNCELoss(temperature=0.1, tau_plus=0.1, beta=0.0, reduction='mean', "
        "symmetric=False)"
    )
    assert repr(DebiasedInfoNCELoss()) == wanted
