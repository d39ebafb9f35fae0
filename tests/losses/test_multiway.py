"""Tests for mmfuse.losses.multiway."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import combinations
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import (
    LearnedTemperature,
    MultiwayInfoNCELoss,
    info_nce,
    multiway_info_nce,
)
from mmfuse.testing import assert_block_contract
from tests.contrast import (
    assert_autocast_changes_nothing,
    assert_half_precision_is_summed_in_float32,
    assert_nan_reaches_nothing,
    assert_zero_in_the_graph,
)
from tests.references import naive_info_nce
from tests.strategies import seeds, sizes

few = settings(max_examples=25)
temperatures = st.sampled_from([0.1, 0.5, 3.0])
reductions = st.sampled_from(["mean", "sum", "none"])


class Batch(NamedTuple):
    streams: Tensor  # (B, M, D)
    present: Tensor  # (B, M)
    ids: Tensor  # (B,)
    valid: Tensor  # (B,)


@st.composite
def batches(draw: st.DrawFn, least: int = 1) -> Batch:
    """Some streams are absent, some rows share an id and some are not valid."""
    rows, modalities, dim = draw(st.integers(1, 5)), draw(st.integers(least, 4)), draw(sizes)
    torch.manual_seed(draw(seeds))
    streams = torch.randn(rows, modalities, dim, dtype=torch.float64)
    present = torch.rand(rows, modalities) < draw(st.sampled_from([0.4, 0.8]))
    return Batch(streams, present, torch.randint(3, (rows,)), torch.rand(rows) < 0.8)


# -- reference: the formula, read aloud -----------------------------------------------------------


def naive_pair(case: Batch, m: int, n: int, temperature: float, symmetric: bool) -> float | None:
    """InfoNCE of the rows that have both; nothing where there is none."""
    streams, present, ids, valid = case
    rows = [i for i in range(len(ids)) if valid[i] and present[i, m] and present[i, n]]
    if not rows:
        return None
    one, other = streams[rows, m].tolist(), streams[rows, n].tolist()

    def mean(query: list[list[float]], key: list[list[float]]) -> float:
        negatives = [
            [key[b] for b, j in enumerate(rows) if ids[j] != ids[i] and j != i] for i in rows
        ]
        return sum(naive_info_nce(query, key, negatives, temperature)) / len(rows)

    return (mean(one, other) + mean(other, one)) / 2 if symmetric else mean(one, other)


@given(batches(), temperatures, reductions, st.booleans(), st.booleans(), st.booleans(), st.data())
@settings(max_examples=60)
def test_matches_naive(case, temperature, reduction, symmetric, weighted, listed, data):
    modalities = case.streams.shape[1]
    pairs = list(combinations(range(modalities), 2))
    if listed and pairs:
        pairs = data.draw(st.lists(st.sampled_from([*pairs, *[(n, m) for m, n in pairs]])))
    weights = [1.0] * len(pairs)
    if weighted:
        weights = data.draw(st.lists(st.floats(0.1, 2), min_size=len(pairs), max_size=len(pairs)))
    losses = [naive_pair(case, m, n, temperature, symmetric) for m, n in pairs]
    there = [(w, loss) for w, loss in zip(weights, losses, strict=True) if loss is not None]
    total, share = sum(w * loss for w, loss in there), sum(w for w, _ in there)
    wanted = {
        "none": [loss or 0.0 for loss in losses],
        "sum": total,
        "mean": total / share if there else 0.0,
    }
    result = multiway_info_nce(
        case.streams,
        case.present,
        temperature=temperature,
        pairs=pairs if listed else None,
        weights=weights if weighted else None,
        reduction=reduction,
        ids=case.ids,
        valid=case.valid,
        symmetric=symmetric,
    )
    torch.testing.assert_close(result, torch.tensor(wanted[reduction], dtype=torch.float64))


@given(batches(), st.booleans())
@few
def test_module_equals_function(case, symmetric):
    streams, present, ids, valid = case
    options = {"temperature": 0.3, "reduction": "sum", "symmetric": symmetric}
    module = MultiwayInfoNCELoss(**options)
    wanted = multiway_info_nce(streams, present, ids=ids, valid=valid, **options)
    assert torch.equal(module(streams, present, ids=ids, valid=valid), wanted)
    assert torch.equal(copy.deepcopy(module)(streams, present, ids=ids, valid=valid), wanted)


# -- limits ---------------------------------------------------------------------------------------


def test_two_modalities_are_info_nce():
    streams = torch.randn(5, 2, 3)
    wanted = info_nce(streams[:, 0], streams[:, 1], symmetric=True)
    torch.testing.assert_close(multiway_info_nce(streams), wanted)
    one_way = info_nce(streams[:, 1], streams[:, 0])
    result = multiway_info_nce(streams, pairs=[(1, 0)], symmetric=False)
    torch.testing.assert_close(result, one_way)


def test_pairs_with_an_anchor_bind_all_others_to_it():
    streams = torch.randn(5, 3, 4)
    result = multiway_info_nce(streams, pairs=[(0, 1), (0, 2)], weights=[1.0, 3.0])
    near, far = (info_nce(streams[:, 0], streams[:, n], symmetric=True) for n in (1, 2))
    torch.testing.assert_close(result, (near + 3 * far) / 4)


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("row", [torch.ones(3), torch.zeros(3)])
def test_rows_that_are_all_alike_are_told_apart_by_chance(row, temperature):
    loss = multiway_info_nce(row.expand(5, 4, 3), temperature=temperature)
    torch.testing.assert_close(loss, torch.tensor(math.log(5)))


def test_takes_the_options_of_info_nce():
    streams, ids = torch.randn(6, 3, 4), torch.tensor([0, 1, 0, 2, 1, 0])
    temperature = LearnedTemperature(0.3)
    options = {"similarity": "dot", "same_id": "positive", "chunk_size": 4, "symmetric": False}
    wanted = torch.stack(
        [
            info_nce(streams[:, m], streams[:, n], temperature=0.3, ids=ids, **options)
            for m, n in [(0, 1), (0, 2), (1, 2)]
        ]
    )
    loss = MultiwayInfoNCELoss(temperature, reduction="none", **options)
    torch.testing.assert_close(loss(streams, ids=ids), wanted)
    got = multiway_info_nce(streams, temperature=temperature(), ids=ids, **options)
    torch.testing.assert_close(got, wanted.mean())
    got.backward()
    assert temperature.log_temperature.grad != 0


# -- properties: masks ----------------------------------------------------------------------------


@given(batches())
@few
def test_all_present_is_no_mask(case):
    streams, present, ids, valid = case
    loss = partial(multiway_info_nce, streams, ids=ids, valid=valid)
    torch.testing.assert_close(loss(torch.ones_like(present)), loss())


@given(batches())
@few
def test_modality_that_nobody_has_is_as_if_never_given(case):
    streams, present, ids, valid = case
    more = torch.cat([streams, torch.randn_like(streams[:, :1])], 1)
    absent = torch.cat([present, torch.zeros_like(present[:, :1])], 1)
    wanted = multiway_info_nce(streams, present, ids=ids, valid=valid)
    torch.testing.assert_close(multiway_info_nce(more, absent, ids=ids, valid=valid), wanted)


@given(batches(), st.booleans())
@few
def test_nan_of_what_is_absent_reaches_nothing(case, symmetric):
    streams, present, ids, valid = case
    loss = partial(multiway_info_nce, present=present, ids=ids, valid=valid, symmetric=symmetric)
    assert_nan_reaches_nothing(loss, [streams], present & valid.unsqueeze(1))


@given(batches(least=2), st.booleans())
@few
def test_permuting_rows_or_modalities_changes_nothing(case, by_row):
    streams, present, ids, valid = case
    wanted = multiway_info_nce(streams, present, ids=ids, valid=valid)
    if by_row:
        order = torch.randperm(len(ids))
        case = Batch(*(tensor[order] for tensor in case))
    else:
        order = torch.randperm(streams.shape[1])
        case = Batch(streams[:, order], present[:, order], ids, valid)
    result = multiway_info_nce(case.streams, case.present, ids=case.ids, valid=case.valid)
    torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_pair_is_zero_in_the_graph(reduction):
    loss = partial(multiway_info_nce, reduction=reduction)
    streams = torch.randn(4, 3, 2)
    alone = torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0]]
    assert_zero_in_the_graph(partial(loss, present=alone), streams)
    assert_zero_in_the_graph(partial(loss, valid=torch.zeros(4, dtype=torch.bool)), streams)
    assert_zero_in_the_graph(partial(loss, pairs=[]), streams)
    assert_zero_in_the_graph(loss, streams[:, :1])
    assert_zero_in_the_graph(loss, streams[:, :0])
    assert_zero_in_the_graph(loss, streams[:0])


def test_weights_of_zero_leave_zero_in_the_graph():
    loss = partial(multiway_info_nce, weights=[0.0, 0.0, 0.0])
    assert_zero_in_the_graph(loss, torch.randn(4, 3, 2))


# -- properties: numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    streams = torch.randn(5, 3, 4)
    streams[0, 1] = 0
    loss = partial(multiway_info_nce, temperature=0.01)
    assert_half_precision_is_summed_in_float32(loss, dtype, streams)
    assert_autocast_changes_nothing(loss, streams)


# -- gradients and contract -----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction):
    streams = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    present = torch.rand(4, 3) < 0.7
    loss = partial(
        multiway_info_nce, present=present, temperature=0.5, reduction=reduction, symmetric=False
    )
    assert torch.autograd.gradcheck(loss, streams)


def test_contract():
    streams, present = torch.randn(4, 3, 5), torch.rand(4, 3) < 0.7
    masks = {"ids": torch.tensor([0, 0, 1, 2]), "valid": torch.tensor([True, True, True, False])}
    assert_block_contract(MultiwayInfoNCELoss(), streams, present, keywords=masks)
    loss = MultiwayInfoNCELoss(pairs=[(0, 1), (2, 0)], weights=[1.0, 2.0], reduction="sum")
    assert_block_contract(loss, streams)


# -- errors and repr ------------------------------------------------------------------------------

STREAMS = torch.ones(4, 3, 2)


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        (STREAMS[0], {}, r"Expected streams of shape \(B, M, D\), got \(3, 2\)\."),
        (STREAMS, {"temperature": 0.0}, r"Expected temperature > 0, got 0\.0\."),
        (STREAMS, {"reduction": "max"}, r"Expected reduction to be one of .*, got 'max'\."),
        (STREAMS, {"pairs": [(1, 1)]}, r"Expected pairs of two different .*, got \(1, 1\)\."),
        (STREAMS, {"pairs": [(0, -1)]}, r"Expected pairs of two different .*, got \(0, -1\)\."),
        (
            STREAMS,
            {"pairs": [(0, 3)]},
            r"Expected streams of at least 4 modalities for pairs \(\(0, 3\),\), got 3\.",
        ),
        (STREAMS, {"weights": [1.0]}, r"Expected one weight for each of 3 pairs, got 1\."),
        (STREAMS, {"weights": [1.0, 1.0, -1.0]}, r"Expected finite weights >= 0, got -1\.0\."),
        (STREAMS, {"present": torch.ones(4, 3)}, r"Expected present of dtype torch\.bool, got"),
        (
            STREAMS,
            {"present": torch.ones(3, 4, dtype=torch.bool)},
            r"Expected present of shape \(4, 3\), got \(3, 4\)\.",
        ),
        (
            STREAMS,
            {"valid": torch.ones(3, dtype=torch.bool)},
            r"Expected valid of shape \(4,\), got \(3,\)\.",
        ),
        (STREAMS, {"ids": torch.arange(3)}, r"Expected ids of shape \(4,\), got \(3,\)\."),
    ],
)
def test_rejects_bad_inputs(streams, options, message):
    with pytest.raises(ValueError, match=message):
        multiway_info_nce(streams, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"Expected temperature > 0, got -1\.0\."),
        ({"reduction": ""}, r"Expected reduction to be one of .*, got ''\."),
        ({"pairs": [(0, 0)]}, r"Expected pairs of two different modalities, got \(0, 0\)\."),
        ({"weights": [math.nan]}, r"Expected finite weights >= 0, got nan\."),
        (
            {"pairs": [(0, 1)], "weights": [1.0, 2.0]},
            r"Expected one weight for each of 1 pairs, got 2\.",
        ),
    ],
)
def test_rejects_bad_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        MultiwayInfoNCELoss(**options)


def test_repr():
    wanted = (
        "MultiwayInfoNCELoss(\n"
        "  pairs=((0, 1),), weights=(2.0,), reduction='mean'\n"
        "  (contrast): InfoNCELoss(temperature=0.1, reduction='mean', symmetric=True)\n"
        ")"
    )
    assert repr(MultiwayInfoNCELoss(pairs=[(0, 1)], weights=[2.0])) == wanted
