"""Tests for mmfuse.losses.info_nce."""

from __future__ import annotations

import copy
import math
import pickle
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfuse import InfoNCELoss, info_nce
from mmfuse.testing import assert_block_contract
from tests.references import naive_info_nce
from tests.strategies import seeds, sizes, with_nan

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 1.0, 3.0])
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


def vectors(rows: int, dim: int = 3, **options: object) -> tuple[Tensor, Tensor]:
    query, key = torch.randn(2, rows, dim, **options)
    return query, key


def with_row(tensor: Tensor, row: Tensor) -> Tensor:
    return torch.cat([tensor, row.unsqueeze(0)])


# -- reference: the formula, read aloud -----------------------------------------------------------


def other_keys(key: Tensor, ids: Tensor, valid: Tensor) -> list[list[list[float]]]:
    rows = range(len(key))
    return [
        [key[j].tolist() for j in rows if j != i and valid[j] and ids[j] != ids[i]] for i in rows
    ]


def reduced(losses: list[float], valid: Tensor, reduction: str) -> Tensor:
    kept = [loss if ok else 0.0 for loss, ok in zip(losses, valid, strict=True)]
    total = {
        "none": kept,
        "sum": sum(kept),
        "mean": sum(kept) / max(int(valid.sum()), 1),
    }
    return torch.tensor(total[reduction], dtype=torch.float64)


@given(batches(), temperatures, reductions, st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_in_batch_matches_naive(case, temperature, reduction, symmetric, with_ids, with_valid):
    query, key, ids, valid = case
    all_ids = ids if with_ids else torch.arange(len(query))
    all_valid = valid if with_valid else torch.ones_like(valid)
    one, other = query.tolist(), key.tolist()
    losses = naive_info_nce(one, other, other_keys(key, all_ids, all_valid), temperature)
    if symmetric:
        back = naive_info_nce(other, one, other_keys(query, all_ids, all_valid), temperature)
        losses = [(there + again) / 2 for there, again in zip(losses, back, strict=True)]
    result = info_nce(
        query,
        key,
        temperature=temperature,
        reduction=reduction,
        ids=ids if with_ids else None,
        valid=valid if with_valid else None,
        symmetric=symmetric,
    )
    torch.testing.assert_close(result, reduced(losses, all_valid, reduction))


@given(batches(), temperatures, reductions, st.integers(0, 4), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_explicit_negatives_match_naive(case, temperature, reduction, number, own, with_valid):
    query, key, _, valid = case
    rows, dim = query.shape
    shape = (rows, number, dim) if own else (number, dim)
    negatives = torch.randn(shape, dtype=query.dtype)
    all_valid = valid if with_valid else torch.ones_like(valid)
    listed = negatives.tolist() if own else [negatives.tolist()] * rows
    losses = naive_info_nce(query.tolist(), key.tolist(), listed, temperature)
    result = info_nce(
        query,
        key,
        negatives,
        temperature=temperature,
        reduction=reduction,
        valid=valid if with_valid else None,
    )
    torch.testing.assert_close(result, reduced(losses, all_valid, reduction))


@given(batches(), temperatures)
@few
def test_is_cross_entropy_over_the_batch(case, temperature):
    cosines = F.cosine_similarity(case.query.unsqueeze(1), case.key, dim=-1)
    wanted = F.cross_entropy(cosines / temperature, torch.arange(len(cosines)))
    torch.testing.assert_close(info_nce(case.query, case.key, temperature=temperature), wanted)


@given(batches(), st.booleans())
@few
def test_module_equals_function(case, symmetric):
    query, key, ids, valid = case
    module = InfoNCELoss(0.3, reduction="sum", symmetric=symmetric)
    wanted = info_nce(
        query, key, temperature=0.3, reduction="sum", ids=ids, valid=valid, symmetric=symmetric
    )
    assert torch.equal(module(query, key, ids=ids, valid=valid), wanted)


# -- properties: what is no negative --------------------------------------------------------------


@given(batches(), st.booleans())
@few
def test_row_of_the_same_id_adds_nothing_to_the_denominator(case, symmetric):
    query, key, ids, _ = case
    options = {"reduction": "none", "symmetric": symmetric}
    before = info_nce(query, key, ids=ids, **options)
    twin_query, twin_key = torch.randn(2, query.shape[1], dtype=query.dtype)
    after = info_nce(
        with_row(query, twin_query), with_row(key, twin_key), ids=with_row(ids, ids[0]), **options
    )
    same = ids == ids[0]
    torch.testing.assert_close(after[:-1][same], before[same])


@given(batches(), st.booleans())
@few
def test_invalid_row_is_as_if_never_given(case, symmetric):
    query, key, ids, valid = case
    options = {"temperature": 0.2, "symmetric": symmetric}
    everything = info_nce(query, key, ids=ids, valid=valid, **options)
    only_valid = info_nce(query[valid], key[valid], ids=ids[valid], **options)
    torch.testing.assert_close(everything, only_valid)


def test_batch_of_one_id_has_loss_zero():
    query, key = vectors(4)
    loss = info_nce(query, key, ids=torch.zeros(4, dtype=torch.int64), temperature=0.01)
    assert loss == 0  # a false negative set to zero before exp would leave log(1 + 3 exp(-s))


def loss_and_gradients(*tensors: Tensor, **options: object) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss = info_nce(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@given(batches(), st.booleans(), st.booleans())
@few
def test_nan_of_an_invalid_row_reaches_nothing(case, symmetric, own_negatives):
    query, key, _, valid = case
    rows, dim = query.shape
    clean = [query, key, *[torch.randn(rows, 2, dim, dtype=query.dtype)][: int(own_negatives)]]
    dirty = [with_nan(tensor, valid) for tensor in clean]
    options = {"valid": valid, "symmetric": symmetric and not own_negatives}
    wanted = loss_and_gradients(*clean, **options)
    for got, want in zip(loss_and_gradients(*dirty, **options), wanted, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3)])
def test_no_negatives_means_loss_zero(shape):
    query, key = vectors(4)
    assert info_nce(query, key, torch.empty(shape)) == 0


def test_single_row_has_no_negatives_and_loss_zero():
    query, key = vectors(1)
    query.requires_grad_()
    loss = info_nce(query, key, symmetric=True)
    loss.backward()
    assert loss == 0
    assert (query.grad == 0).all()


@pytest.mark.parametrize("negatives", [None, torch.ones(2, 3), torch.ones(0, 2, 3)])
def test_empty_batch_has_loss_zero(negatives):
    query = torch.zeros(0, 3, requires_grad=True)
    loss = info_nce(query, query, negatives)
    loss.backward()
    assert loss == 0
    assert query.grad.shape == (0, 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", [None, torch.ones(2, 3), torch.ones(4, 2, 3)])
def test_batch_without_a_valid_row_has_loss_zero_and_stays_in_the_graph(reduction, negatives):
    query, key = vectors(4)
    query.requires_grad_()
    key.requires_grad_()
    nobody = torch.zeros(4, dtype=torch.bool)
    loss = info_nce(query, key, negatives, valid=nobody, reduction=reduction)
    loss.sum().backward()
    assert (loss == 0).all()
    assert (query.grad == 0).all()
    assert (key.grad == 0).all()


# -- properties: numbers --------------------------------------------------------------------------


@given(batches(), st.floats(-4, 4), st.floats(-4, 4))
@few
def test_length_of_a_vector_does_not_matter(case, one, other):
    query, key, ids, valid = case
    options = {"ids": ids, "valid": valid, "reduction": "none"}
    longer = info_nce(10**one * query, 10**other * key, **options)
    torch.testing.assert_close(longer, info_nce(query, key, **options))


@given(batches(least=2), st.booleans())
@few
def test_permuting_rows_permutes_losses(case, symmetric):
    order = torch.randperm(len(case.query))
    query, key, ids, valid = case
    options = {"reduction": "none", "symmetric": symmetric}
    losses = info_nce(query, key, ids=ids, valid=valid, **options)
    permuted = info_nce(query[order], key[order], ids=ids[order], valid=valid[order], **options)
    torch.testing.assert_close(permuted, losses[order])


@given(batches())
@few
def test_symmetric_is_the_mean_of_both_directions(case):
    query, key, ids, valid = case
    there = info_nce(query, key, ids=ids, valid=valid)
    back = info_nce(key, query, ids=ids, valid=valid)
    both = info_nce(query, key, ids=ids, valid=valid, symmetric=True)
    torch.testing.assert_close(both, (there + back) / 2)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_rows_that_are_all_alike_are_told_apart_by_chance(row, temperature):
    same = row.expand(5, 3)
    loss = info_nce(same, same, temperature=temperature)
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))


def test_cold_loss_of_a_perfect_match_vanishes():
    assert info_nce(torch.eye(4), torch.eye(4), temperature=0.01) < 1e-30


def test_cold_loss_of_a_perfect_mismatch_is_the_gap():
    loss = info_nce(torch.eye(2), -torch.eye(2), temperature=0.01)  # 0 against -1, over 0.01
    torch.testing.assert_close(loss, torch.tensor(100.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_row_at_low_temperature_keeps_gradients_moderate(dtype):
    query, key = vectors(4)
    query[1], key[2] = 0, 0
    query, key = query.to(dtype).requires_grad_(), key.to(dtype).requires_grad_()
    loss = info_nce(query, key, temperature=0.01, reduction="sum", symmetric=True)
    loss.backward()
    assert loss.isfinite()
    # four rows at most meet a vector, and no similarity pulls harder than 2 / 0.01
    assert query.grad[1].float().norm() <= 4 * 2 / 0.01
    assert key.grad[2].float().norm() <= 4 * 2 / 0.01
    assert query.grad.isfinite().all()
    assert key.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    query, key = (tensor.to(dtype).requires_grad_() for tensor in vectors(6))
    loss = info_nce(query, key, temperature=0.01)
    torch.testing.assert_close(loss, info_nce(query.float(), key.float(), temperature=0.01))
    loss.backward()
    assert query.grad.dtype == dtype
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("negatives", [None, torch.eye(5, 3), torch.ones(6, 5, 3)])
def test_autocast_changes_nothing(negatives):
    query, key = vectors(6)
    wanted = info_nce(query, key, negatives, temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(query, key, negatives, temperature=0.01), wanted)


def test_dtypes_that_differ_meet_in_the_wider_one():
    query, key = vectors(4, dtype=torch.float64)
    loss = info_nce(query, key.float(), key.half())
    torch.testing.assert_close(loss, info_nce(query, key.float().double(), key.half().double()))


def test_learned_temperature_gets_a_finite_gradient_beside_masked_negatives():
    query, key = vectors(4)
    temperature = torch.tensor(0.1, requires_grad=True)
    loss = info_nce(query, key, temperature=temperature, ids=torch.tensor([0, 0, 1, 2]))
    loss.backward()
    assert temperature.grad.isfinite()
    assert temperature.grad != 0


def test_strided_rows_give_the_same_loss():
    query, key = (tensor.mT for tensor in torch.randn(2, 3, 5))
    assert not query.is_contiguous()
    assert torch.equal(info_nce(query, key), info_nce(query.contiguous(), key.contiguous()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_copy_gives_the_same_loss(copied):
    query, key = vectors(4)
    loss = InfoNCELoss(0.2, symmetric=True)
    assert torch.equal(copied(loss)(query, key), loss(query, key))


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradcheck_in_batch(symmetric):
    ids, valid = torch.tensor([0, 1, 0, 2]), torch.tensor([True, True, True, False])

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return info_nce(query, key, ids=ids, valid=valid, symmetric=symmetric, temperature=0.5)

    query, key = vectors(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (query.requires_grad_(), key.requires_grad_()))


@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3)])
def test_gradcheck_explicit(shape):
    tensors = [*vectors(4, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)]
    assert torch.autograd.gradcheck(info_nce, [tensor.requires_grad_() for tensor in tensors])


def test_contract_in_batch():
    masks = {"ids": torch.tensor([0, 0, 1, 2]), "valid": torch.tensor([True, True, True, False])}
    assert_block_contract(InfoNCELoss(symmetric=True), *vectors(4), keywords=masks)


def test_contract_explicit():
    assert_block_contract(InfoNCELoss(), *vectors(4), torch.randn(4, 2, 3))


# -- errors and repr ------------------------------------------------------------------------------

QUERY = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ((QUERY[0], QUERY[0]), {}, r"Expected query of shape \(B, D\), got \(3,\)\."),
        ((QUERY[None],) * 2, {}, r"Expected query of shape \(B, D\), got \(1, 4, 3\)\."),
        ((QUERY, QUERY[:1]), {}, r"Expected positive_key of shape \(4, 3\), got \(1, 3\)\."),
        ((QUERY, QUERY[:, :2]), {}, r"Expected positive_key of shape \(4, 3\), got \(4, 2\)\."),
        ((QUERY,) * 2, {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        ((QUERY,) * 2, {"temperature": math.nan}, r"Expected temperature > 0, got nan\."),
        (
            (QUERY,) * 2,
            {"reduction": "max"},
            r"Expected reduction to be one of 'mean', 'sum', 'none', got 'max'\.",
        ),
        (
            (QUERY,) * 2,
            {"valid": torch.ones(4)},
            r"Expected valid of dtype torch\.bool, got torch\.float32\.",
        ),
        (
            (QUERY,) * 2,
            {"valid": torch.ones(1, dtype=torch.bool)},
            r"Expected valid of shape \(4,\), got \(1,\)\.",
        ),
        (
            (QUERY,) * 2,
            {"ids": torch.ones(1, 4, dtype=torch.int64)},
            r"Expected ids of shape \(4,\), got \(1, 4\)\.",
        ),
        (
            (QUERY,) * 2,
            {"ids": torch.ones(4)},
            r"Expected ids of an integer dtype, got torch\.float32\.",
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
            (QUERY, QUERY, torch.ones(2, 4, 2, 3)),
            {},
            r"Expected negative_keys of shape \(N, 3\), got \(2, 4, 2, 3\)\.",
        ),
        (
            (QUERY, QUERY, QUERY),
            {"symmetric": True},
            r"Expected ids=None .* negative_keys, got ids None and symmetric=True\.",
        ),
        (
            (QUERY, QUERY, QUERY),
            {"ids": torch.arange(4)},
            r"Expected .*symmetric=False with negative_keys, got ids given and symmetric=False\.",
        ),
    ],
)
def test_rejects_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        info_nce(*inputs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"Expected temperature > 0, got -1\.0\."),
        ({"reduction": ""}, r"Expected reduction to be one of 'mean', 'sum', 'none', got ''\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        InfoNCELoss(**options)


def test_repr():
    wanted = "InfoNCELoss(temperature=0.1, reduction='mean', symmetric=False)"
    assert repr(InfoNCELoss()) == wanted
