"""Tests for mmfuse.projection.missing."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from mmfuse import LearnedStandIn, ModalityDropout
from mmfuse.testing import assert_block_contract
from tests.outcomes import assert_same, drawn, outcome, places
from tests.strategies import seeds, streams, with_nan

few = settings(max_examples=25)
shares = st.sampled_from([0.0, 0.3, 0.8, 1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- reference: the formulas, read aloud ----------------------------------------------------------


def naive_dropout(present: list[bool], draws: list[float], p: float) -> list[bool]:
    """Hide what drew less than p, but never the present one that drew most."""
    most = max((u for u, there in zip(draws, present, strict=True) if there), default=None)
    return [there and (u >= p or u == most) for u, there in zip(draws, present, strict=True)]


@given(streams(), shares, seeds)
@few
def test_dropout_matches_naive(case, p, seed):
    left = ModalityDropout(p)(case.x, case.present, generator=seeded(seed))
    draws = torch.rand(case.present.shape, generator=seeded(seed))
    for place in places(case.present.shape[:-1]):
        wanted = naive_dropout(case.present[place].tolist(), draws[place].tolist(), p)
        assert left[place].tolist() == wanted


@given(streams())
@few
def test_stand_in_matches_naive(case):
    num_modalities, dim = case.x.shape[-2:]
    stand_in = drawn(LearnedStandIn(dim, num_modalities))
    x, present = stand_in(case.x, case.present)
    assert present.all()
    for place in places(case.present.shape):
        wanted = case.x[place] if case.present[place] else stand_in.vectors[place[-1]]
        assert torch.equal(x[place], wanted)


# -- properties of dropout ------------------------------------------------------------------------


@given(streams(), shares)
@few
def test_dropout_never_takes_the_last_modality_and_never_adds_one(case, p):
    left = ModalityDropout(p)(case.x, case.present)
    assert not (left & ~case.present).any()
    assert_same(left.any(-1), case.present.any(-1))


@given(streams())
@few
def test_dropout_at_one_leaves_exactly_one(case):
    left = ModalityDropout(1.0)(case.x, case.present)
    assert_same(left.sum(-1), case.present.any(-1).long())


@given(streams(), shares)
@few
def test_dropout_hides_nothing_in_eval_mode(case, p):
    assert_same(ModalityDropout(p).eval()(case.x, case.present), case.present)


@given(streams())
@few
def test_dropout_at_zero_hides_nothing(case):
    assert_same(ModalityDropout(0.0)(case.x, case.present), case.present)
    assert ModalityDropout(0.0)(case.x).all()


@given(streams(), shares, seeds)
@few
def test_dropout_looks_at_no_value(case, p, seed):
    dropout, nothing = ModalityDropout(p), torch.full_like(case.x, torch.nan)
    left = dropout(nothing, case.present, generator=seeded(seed))
    assert_same(left, dropout(case.x, case.present, generator=seeded(seed)))


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1.0])
def test_dropout_hides_at_the_promised_rate(p, num_modalities):
    rows = 20_000
    left = ModalityDropout(p)(torch.empty(rows, num_modalities, 1))
    # a row that would lose all, with probability p^M, keeps one of its M
    rate = p - p**num_modalities / num_modalities
    assert ((~left).double().mean(0) - rate).abs().max() <= 4 * math.sqrt(rate / rows)


def test_dropout_leaves_each_modality_equally_often():
    rows = 20_000
    kept = ModalityDropout(1.0)(torch.empty(rows, 4, 1)).double().mean(0)
    assert (kept - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / rows)


def test_dropout_does_not_count_an_absent_modality_as_one_that_stays():
    present = torch.tensor([True, False, True]).expand(20_000, 3)
    left = ModalityDropout(0.5)(torch.empty(20_000, 3, 1), present).double().mean(0)
    assert (left - torch.tensor([0.625, 0.0, 0.625])).abs().max() < 4 * math.sqrt(0.25 / 20_000)


def test_dropout_draws_for_every_row():
    left = ModalityDropout(0.5)(torch.empty(2, 3, 50, 4, 1)).flatten(0, 1)
    assert len({tuple(rows.flatten().tolist()) for rows in left}) == 6


def test_dropout_repeats_itself_with_a_generator_and_leaves_the_default_one_alone():
    x, before = torch.empty(100, 3, 1), torch.get_rng_state()
    first = ModalityDropout(0.5)(x, generator=seeded())
    assert_same(ModalityDropout(0.5)(x, generator=seeded()), first)
    assert torch.equal(torch.get_rng_state(), before)


# -- properties of the stand-in -------------------------------------------------------------------


@given(streams())
@few
def test_stand_in_hides_what_an_absent_modality_holds(case):
    stand_in = drawn(LearnedStandIn(case.x.shape[-1], case.x.shape[-2]))
    dirty = outcome(stand_in, with_nan(case.x, case.present), case.present)
    assert_same(dirty, outcome(stand_in, case.x, case.present))


def test_stand_in_leaves_complete_streams_alone():
    x = torch.randn(3, 2, 4)
    assert LearnedStandIn(4, 2)(x).x is x


def test_stand_in_learns_only_where_it_stands_in():
    stand_in = LearnedStandIn(4, 3)
    stand_in(torch.randn(3, 4), torch.tensor([True, False, True])).x.sum().backward()
    assert stand_in.vectors.grad.sum(-1).tolist() == [0, 4, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stand_in_keeps_the_dtype_of_the_streams(dtype):
    x = torch.randn(2, 3, 4).to(dtype)
    present = torch.tensor([[True, False, True], [True, True, True]])
    stand_in = LearnedStandIn(4, 3)
    filled = stand_in(x, present).x
    assert filled.dtype == stand_in(x).x.dtype == dtype
    assert_same(filled[0, 1], stand_in.vectors[1].to(dtype))


def test_stand_ins_start_about_as_long_as_one():
    vectors = LearnedStandIn(64, 500).vectors
    length = vectors.square().sum(-1)  # mean 1, variance 2 / 64
    assert abs(length.mean() - 1) < 4 * math.sqrt(2 / 64 / 500)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copy_gives_the_same_streams(copied):
    stand_in, x = LearnedStandIn(4, 2), torch.randn(3, 2, 4)
    present = torch.tensor([True, False]).expand(3, 2)
    assert_same(copied(stand_in)(x, present), stand_in(x, present))


# -- gradients and contract -----------------------------------------------------------------------


def test_stand_in_gradcheck():
    stand_in = drawn(LearnedStandIn(2, 3))
    present = torch.tensor([[True, False, True], [False, False, False]])

    def filled(x: Tensor, vectors: Tensor) -> Tensor:
        return functional_call(stand_in, {"vectors": vectors}, (x, present)).x

    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(filled, (x, stand_in.vectors))


def test_dropout_contract():
    assert_block_contract(ModalityDropout(0.5), torch.randn(5, 3, 2), torch.rand(5, 3) < 0.7)


def test_stand_in_contract():
    present = torch.tensor([[True, False], [False, True], [False, False]])
    assert_block_contract(LearnedStandIn(4, 2), torch.randn(3, 2, 4), present)


# -- errors and repr ------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_dropout_rejects_what_is_no_probability(p):
    with pytest.raises(ValueError, match=rf"Expected 0 <= p <= 1, got {p}\."):
        ModalityDropout(p)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 2), r"Expected dim > 0, got 0\."),
        ((4, 0), r"Expected num_modalities > 0, got 0\."),
    ],
)
def test_stand_in_rejects_bad_hyperparameters(sizes, message):
    with pytest.raises(ValueError, match=message):
        LearnedStandIn(*sizes)


X = torch.ones(3, 2, 4)


@pytest.mark.parametrize("block", [ModalityDropout(0.5), LearnedStandIn(4, 2)], ids=type)
@pytest.mark.parametrize(
    ("present", "message"),
    [
        (torch.ones(3, 2), r"Expected present of dtype torch\.bool, got torch\.float32\."),
        (torch.ones(2, dtype=torch.bool), r"Expected present of shape \(3, 2\), got \(2,\)\."),
    ],
)
def test_rejects_bad_presence(block, present, message):
    with pytest.raises(ValueError, match=message):
        block(X, present)


def test_dropout_rejects_a_single_vector():
    with pytest.raises(ValueError, match=r"Expected x of shape \(\.\.\., M, D\), got \(4,\)\."):
        ModalityDropout(0.5)(X[0, 0])


def test_stand_in_rejects_other_streams():
    message = r"Expected x of shape \(\.\.\., 2, 4\), got \(3, 2, 3\)\."
    with pytest.raises(ValueError, match=message):
        LearnedStandIn(4, 2)(X[..., :3])


def test_repr():
    assert repr(ModalityDropout(0.5)) == "ModalityDropout(p=0.5)"
    assert repr(LearnedStandIn(4, 2)) == "LearnedStandIn(dim=4, num_modalities=2)"
