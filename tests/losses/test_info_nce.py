"""Tests for mmfuse.losses.info_nce."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mmfuse import InfoNCELoss, info_nce
from mmfuse.losses import LearnedTemperature
from mmfuse.testing import assert_block_contract
from tests.references import cosine, naive_info_nce
from tests.strategies import seeds, sizes, with_nan

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 1.0, 3.0])
reductions = st.sampled_from(["mean", "sum", "none"])
chunk_sizes = st.sampled_from([None, "auto", 1, 2, 7])


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


# -- reference of every option: the sums of the docstring, key by key ------------------------------


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def naive_row(
    query: list[float], met: list[tuple[list[float], bool]], similar, tau: float
) -> float:
    """One loss; ``met`` are all keys of the denominator, and whether they are positives."""
    logits = [similar(query, key) / tau for key, _ in met]
    positives = [logit for logit, (_, positive) in zip(logits, met, strict=True) if positive]
    return math.log(sum(map(math.exp, logits))) - sum(positives) / len(positives)


def naive_losses(
    query: Tensor, key: Tensor, others, similar, tau: float, same_id: str
) -> list[float]:
    """``others[i]`` lists what row i may meet beside its key, and whether it is of the same id."""
    losses = []
    for q, k, candidates in zip(query.tolist(), key.tolist(), others, strict=True):
        kept = [(other, same) for other, same in candidates if same_id == "positive" or not same]
        losses.append(naive_row(q, [(k, True), *kept], similar, tau))
    return losses


similarities = pytest.mark.parametrize("similarity", ["cosine", "dot"])
same_ids = pytest.mark.parametrize("same_id", ["ignore", "positive"])


@similarities
@same_ids
@given(batches(), temperatures, reductions, chunk_sizes, st.booleans(), st.booleans())
@few
def test_every_option_in_batch_matches_naive(
    similarity, same_id, case, temperature, reduction, chunk_size, symmetric, own_ids
):
    query, key, ids, valid = case
    key_ids = torch.randint(3, ids.shape) if own_ids else ids
    similar = cosine if similarity == "cosine" else dot

    def losses(one: Tensor, other: Tensor, ids: Tensor, key_ids: Tensor) -> list[float]:
        rows = range(len(one))
        others = [
            [(other[j].tolist(), bool(ids[i] == key_ids[j])) for j in rows if j != i and valid[j]]
            for i in rows
        ]
        return naive_losses(one, other, others, similar, temperature, same_id)

    wanted = losses(query, key, ids, key_ids)
    if symmetric:
        back = losses(key, query, key_ids, ids)
        wanted = [(there + again) / 2 for there, again in zip(wanted, back, strict=True)]
    result = info_nce(
        query,
        key,
        temperature=torch.tensor(temperature, dtype=torch.float64),
        reduction=reduction,
        ids=ids,
        key_ids=key_ids if own_ids else None,
        valid=valid,
        symmetric=symmetric,
        similarity=similarity,
        same_id=same_id,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(result, reduced(wanted, valid, reduction))


@similarities
@same_ids
@given(batches(), temperatures, chunk_sizes, st.integers(0, 4), *[st.booleans()] * 3)
@few
def test_every_option_of_explicit_negatives_matches_naive(
    similarity, same_id, case, temperature, chunk_size, number, own, with_ids, with_valid
):
    query, key, ids, valid = case
    rows, dim = query.shape
    shape = (rows, number) if own else (number,)
    negatives = torch.randn(*shape, dim, dtype=query.dtype)
    key_ids, negative_valid = torch.randint(3, shape), torch.rand(shape) < 0.6
    each = [
        (tensor if own else tensor.expand(rows, *tensor.shape)).tolist()
        for tensor in (negatives, key_ids, negative_valid)
    ]
    others = [
        [
            (vector, with_ids and bool(ids[i] == its_id))
            for vector, its_id, there in zip(*(part[i] for part in each), strict=True)
            if there or not with_valid
        ]
        for i in range(rows)
    ]
    similar = cosine if similarity == "cosine" else dot
    wanted = naive_losses(query, key, others, similar, temperature, same_id)
    result = info_nce(
        query,
        key,
        negatives,
        temperature=temperature,
        ids=ids if with_ids else None,
        key_ids=key_ids if with_ids else None,
        valid=valid,
        negative_valid=negative_valid if with_valid else None,
        similarity=similarity,
        same_id=same_id,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(result, reduced(wanted, valid, "mean"))


@given(batches(), temperatures)
@few
def test_positives_of_one_id_are_the_supervised_contrastive_loss(case, temperature):
    query, key, ids, _ = case
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / temperature
    alike = (ids.unsqueeze(1) == ids).double()
    wanted = -(logits.log_softmax(-1) * alike).sum(-1) / alike.sum(-1)
    result = info_nce(
        query, key, ids=ids, same_id="positive", temperature=temperature, reduction="none"
    )
    torch.testing.assert_close(result, wanted)


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


@given(batches(), st.booleans(), st.booleans(), chunk_sizes)
@few
def test_nan_of_an_invalid_row_reaches_nothing(case, symmetric, own_negatives, chunk_size):
    query, key, _, valid = case
    rows, dim = query.shape
    clean = [query, key, *[torch.randn(rows, 2, dim, dtype=query.dtype)][: int(own_negatives)]]
    dirty = [with_nan(tensor, valid) for tensor in clean]
    options = {"valid": valid, "symmetric": symmetric and not own_negatives}
    options["chunk_size"] = chunk_size
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


@given(batches(), chunk_sizes, st.booleans(), st.booleans(), st.integers(1, 3))
@few
def test_copies_of_masked_rows_change_nothing(case, chunk_size, symmetric, positive, copies):
    query, key, ids, valid = case
    options = {
        "chunk_size": chunk_size,
        "symmetric": symmetric,
        "same_id": "positive" if positive else "ignore",
    }
    before = info_nce(query, key, ids=ids, valid=valid, **options)
    more = [torch.cat([x, *[x[~valid]] * copies]) for x in (query, key, ids, valid)]
    after = info_nce(*more[:2], ids=more[2], valid=more[3], **options)
    torch.testing.assert_close(after, before)


@given(batches(), chunk_sizes, st.booleans(), st.integers(1, 3))
@few
def test_copies_of_negatives_that_are_none_change_nothing(case, chunk_size, own, copies):
    query, key, _, valid = case
    shape = (len(query), 3) if own else (3,)
    negatives, there = torch.randn(*shape, query.shape[1]).double(), torch.rand(shape) < 0.6
    options = {"valid": valid, "chunk_size": chunk_size}
    before = info_nce(query, key, negatives, negative_valid=there, **options)
    no_more = torch.zeros_like(there)
    more = torch.cat([negatives, *[with_nan(negatives, no_more)] * copies], dim=-2)
    mask = torch.cat([there, *[no_more] * copies], dim=-1)
    after = info_nce(query, key, more, negative_valid=mask, **options)
    torch.testing.assert_close(after, before)


@given(batches(), st.booleans())
@few
def test_ids_that_all_differ_make_no_difference(case, symmetric):
    query, key, ids, valid = case
    options = {"valid": valid, "symmetric": symmetric}
    wanted = info_nce(query, key, **options)
    for same_id in ("ignore", "positive"):
        found = info_nce(query, key, ids=torch.arange(len(ids)), same_id=same_id, **options)
        torch.testing.assert_close(found, wanted)


@given(batches())
@few
def test_explicit_negatives_may_be_the_other_keys(case):
    query, key, ids, valid = case
    for same_id in ("ignore", "positive"):
        options = {"valid": valid, "same_id": same_id}
        wanted = info_nce(query, key, ids=ids, **options)
        found = info_nce(
            query,
            key,
            key.expand(len(key), *key.shape),
            ids=ids,
            key_ids=ids.expand(len(ids), -1),
            negative_valid=valid & ~torch.eye(len(key), dtype=torch.bool),
            **options,
        )
        torch.testing.assert_close(found, wanted)


# -- properties: chunks ----------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, "auto"])
def test_chunks_give_value_and_gradients_of_the_whole(symmetric, dtype, chunk_size):
    query, key = (x.to(dtype) for x in vectors(40, 8))
    ids, valid = torch.randint(20, (40,)), torch.rand(40) < 0.8
    options = {"ids": ids, "valid": valid, "symmetric": symmetric}

    def found(chunk_size: object, same_id: str, similarity: str) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (query, key, torch.tensor(0.07))]
        loss = info_nce(
            *leaves[:2],
            temperature=leaves[2],
            chunk_size=chunk_size,
            same_id=same_id,
            similarity=similarity,
            **options,
        )
        return loss, *torch.autograd.grad(loss, leaves)

    for choice in (("ignore", "cosine"), ("positive", "cosine"), ("ignore", "dot")):
        loss, *gradients = found(chunk_size, *choice)
        wanted, *of_whole = found(None, *choice)
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
        for gradient, whole in zip(gradients, of_whole, strict=True):
            # a rounding of the half precision itself may fall the other way
            tolerance = max(1e-5, 2 * torch.finfo(gradient.dtype).eps)
            torch.testing.assert_close(gradient, whole, rtol=tolerance, atol=1e-5)


def test_chunks_of_a_compiled_loss_of_any_size():
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 6, 9):
        query, key = (x.requires_grad_() for x in vectors(rows))
        options = {"ids": torch.randint(3, (rows,)), "symmetric": True, "chunk_size": 4}
        tau = torch.tensor(0.3, requires_grad=True)
        results = [f(query, key, temperature=tau, **options) for f in (compiled, info_nce)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, (query, key, tau)) for loss in results)
        )


def test_gather_without_other_processes_compiles():
    query, key = vectors(4)
    compiled = torch.compile(InfoNCELoss(gather=True), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key), info_nce(query, key))


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


@pytest.mark.parametrize("length", [1e-20, 1e20])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_very_short_and_very_long_vectors_have_their_cosine(length, chunk_size):
    query, key = vectors(5)
    options = {"symmetric": True, "chunk_size": chunk_size}
    wanted = loss_and_gradients(query, key, **options)
    loss, of_query, of_key = loss_and_gradients(length * query, key / length, **options)
    torch.testing.assert_close([loss, of_query * length, of_key / length], wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("same_id", ["ignore", "positive"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_cold_loss_of_zero_rows_and_rows_alike_is_finite(dtype, chunk_size, same_id, similarity):
    query, key = (torch.ones(6, 3, dtype=dtype) for _ in range(2))
    query[:2], key[1:3] = 0, 0
    temperature = torch.tensor(0.01, requires_grad=True)
    leaves = [query.requires_grad_(), key.requires_grad_(), temperature]
    loss = info_nce(
        query,
        key,
        temperature=temperature,
        ids=torch.tensor([0, 0, 1, 1, 2, 3]),
        symmetric=True,
        chunk_size=chunk_size,
        same_id=same_id,
        similarity=similarity,
    )
    for value in (loss, *torch.autograd.grad(loss, leaves)):
        assert value.isfinite().all()


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("negatives", [None, torch.ones(2, 3), torch.ones(4, 2, 3)])
def test_nobody_valid_is_a_connected_zero_to_everything_learned(negatives, chunk_size):
    query, key = (x.requires_grad_() for x in vectors(4))
    temperature = torch.tensor(0.1, requires_grad=True)
    nobody = torch.zeros(4, dtype=torch.bool)
    loss = info_nce(
        query, key, negatives, temperature=temperature, valid=nobody, chunk_size=chunk_size
    )
    gradients = torch.autograd.grad(loss, (query, key, temperature))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_negatives_that_are_none_leave_nothing_to_learn(chunk_size):
    query, key = (x.requires_grad_() for x in vectors(4))
    none = torch.zeros(2, dtype=torch.bool)
    loss = info_nce(query, key, torch.ones(2, 3), negative_valid=none, chunk_size=chunk_size)
    gradients = torch.autograd.grad(loss, (query, key))
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


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


@same_ids
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradcheck_with_the_temperature(same_id, chunk_size, similarity):
    ids, valid = torch.tensor([0, 1, 0, 2]), torch.tensor([True, True, True, False])

    def loss(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(
            query,
            key,
            temperature=temperature,
            ids=ids,
            valid=valid,
            symmetric=True,
            same_id=same_id,
            similarity=similarity,
            chunk_size=chunk_size,
        )

    inputs = [*vectors(4, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("shape", [(2,), (4, 2)])
def test_gradcheck_of_explicit_negatives_with_ids(shape, chunk_size):
    masks = {
        "ids": torch.tensor([0, 1, 0, 2]),
        "key_ids": torch.randint(3, shape),
        "negative_valid": torch.rand(shape) < 0.8,
    }

    def loss(*inputs: Tensor) -> Tensor:
        tensors, temperature = inputs[:3], inputs[3]
        return info_nce(
            *tensors, temperature=temperature, same_id="positive", chunk_size=chunk_size, **masks
        )

    negatives = torch.randn(*shape, 3, dtype=torch.float64)
    inputs = [*vectors(4, dtype=torch.float64), negatives, torch.tensor(0.5).double()]
    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in inputs])


def test_the_whole_matrix_is_differentiable_twice():
    inputs = [x.requires_grad_() for x in vectors(3, dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(info_nce, inputs)


@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"same_id": "positive"}])
def test_contract_with_a_learned_temperature(options):
    masks = {"ids": torch.tensor([0, 0, 1, 2]), "valid": torch.tensor([True, True, True, False])}
    loss = InfoNCELoss(LearnedTemperature(), symmetric=True, **options)
    assert_block_contract(loss, *vectors(4), keywords=masks)


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
            r"Expected symmetric=False with negative_keys, got symmetric=True\.",
        ),
        (
            (QUERY, QUERY, QUERY),
            {"ids": torch.arange(4)},
            r"Expected ids and key_ids, or none .* got ids given and key_ids None\.",
        ),
        (
            (QUERY,) * 2,
            {"temperature": torch.ones(2)},
            r"Expected temperature of one element, got shape \(2,\)\.",
        ),
        (
            (QUERY,) * 2,
            {"temperature": torch.tensor(1)},
            r"Expected temperature of a floating dtype, got torch\.int64\.",
        ),
        (
            (QUERY,) * 2,
            {"similarity": "l2"},
            r"Expected similarity to be one of 'cosine', 'dot', got 'l2'\.",
        ),
        (
            (QUERY,) * 2,
            {"same_id": "mean"},
            r"Expected same_id to be one of 'ignore', 'positive', got 'mean'\.",
        ),
        ((QUERY,) * 2, {"chunk_size": 0}, r"Expected chunk_size > 0, got 0\."),
        (
            (QUERY,) * 2,
            {"chunk_size": "all"},
            r"Expected chunk_size to be one of 'auto', got 'all'\.",
        ),
        (
            (QUERY,) * 2,
            {"key_ids": torch.arange(4)},
            r"Expected ids with key_ids, got ids None\.",
        ),
        (
            (QUERY,) * 2,
            {"ids": torch.arange(4), "key_ids": torch.arange(3)},
            r"Expected key_ids of shape \(4,\), got \(3,\)\.",
        ),
        (
            (QUERY,) * 2,
            {"negative_valid": torch.ones(4, dtype=torch.bool)},
            r"Expected negative_keys with negative_valid, got negative_keys None\.",
        ),
        (
            (QUERY,) * 3,
            {"key_ids": torch.arange(4)},
            r"Expected ids and key_ids, or none .* got ids None and key_ids given\.",
        ),
        (
            (QUERY,) * 3,
            {"ids": torch.arange(4), "key_ids": torch.ones(4)},
            r"Expected key_ids of an integer dtype, got torch\.float32\.",
        ),
        (
            (QUERY,) * 3,
            {"ids": torch.arange(4), "key_ids": torch.arange(3)},
            r"Expected key_ids of shape \(4,\), got \(3,\)\.",
        ),
        (
            (QUERY,) * 3,
            {"negative_valid": torch.ones(4, 1, dtype=torch.bool)},
            r"Expected negative_valid of shape \(4,\), got \(4, 1\)\.",
        ),
        (
            (QUERY, QUERY, torch.ones(4, 2, 3)),
            {"negative_valid": torch.ones(4, dtype=torch.bool)},
            r"Expected negative_valid of shape \(4, 2\), got \(4,\)\.",
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
        ({"chunk_size": -1}, r"Expected chunk_size > 0, got -1\."),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        InfoNCELoss(**options)


def test_repr():
    wanted = "InfoNCELoss(temperature=0.1, reduction='mean', symmetric=False)"
    assert repr(InfoNCELoss()) == wanted


def test_repr_shows_what_is_not_usual():
    loss = InfoNCELoss(LearnedTemperature(), same_id="positive", chunk_size="auto")
    assert repr(loss) == (
        "InfoNCELoss(\n"
        "  reduction='mean', symmetric=False, same_id='positive', chunk_size='auto'\n"
        "  (temperature): LearnedTemperature(0.07, minimum=0.01, maximum=None)\n"
        ")"
    )


def test_forward_mode_is_right_or_refused():
    query, key, tangent = torch.randn(3, 4, 5, dtype=torch.float64)
    step = 1e-6

    def loss(query: Tensor, **options: Any) -> Tensor:
        return info_nce(query, key, **options)

    slope = torch.func.jvp(loss, (query,), (tangent,))[1]
    both = loss(query + step * tangent) - loss(query - step * tangent)
    torch.testing.assert_close(slope, both / (2 * step), rtol=1e-6, atol=1e-8)
    with pytest.raises(NotImplementedError, match="A contrast in chunks has no forward-mode"):
        torch.func.jvp(lambda query: loss(query, chunk_size=2), (query,), (tangent,))
