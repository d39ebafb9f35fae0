"""Times as models read them: buckets, codes, experts of time, and who reads times at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cammsr.time_code import (
    INTERVALS,
    IntervalEmbedding,
    TemporalMixture,
    TimeCode,
    interval_buckets,
    reads_times,
    time_arguments,
    times_or_positions,
)
from cammsr.variants import VARIANTS, build

Steps = st.lists(st.one_of(st.integers(-9, 9), st.integers(0, 2**45)), min_size=1, max_size=9)


@given(begin=st.integers(0, 2**40), steps=Steps)
def test_buckets_are_a_loop_over_positions(begin, steps):
    times, expected = [begin], [0]
    for step in steps:
        times.append(times[-1] + step)
        expected.append(min(math.floor(100 * math.log2(max(step, 0) + 1)), INTERVALS - 1))
    assert interval_buckets(torch.tensor([times]))[0].tolist() == expected


def test_doublings_are_a_hundred_buckets_apart():
    doublings = torch.arange(41)
    times = torch.stack([torch.zeros_like(doublings), 2**doublings - 1], dim=1)
    assert interval_buckets(times)[:, 1].tolist() == (100 * doublings).clamp(max=4095).tolist()


def test_an_interval_is_a_row_of_the_table():
    embedding = IntervalEmbedding(2)
    assert (embedding.weight == 0).all()  # nothing at first
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(INTERVALS)[:, None] * torch.tensor([1.0, -1.0]))
    got = embedding(torch.tensor([[50, 51, 58, 58]]))
    assert got[0].tolist() == [[0, 0], [100, -100], [300, -300], [0, 0]]


def test_positions_stand_in_for_times():
    items = torch.zeros(2, 3, dtype=torch.int64)
    assert times_or_positions(items, None).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert times_or_positions(items, items + 5).tolist() == [[5, 5, 5], [5, 5, 5]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_models_that_say_so_get_times(variant, tiny, config):
    model, _ = build(variant, tiny, config)
    times = torch.zeros(1, 2)
    is_one = variant.startswith("hm4sr")
    assert reads_times(model) == is_one
    assert time_arguments(model, times) == ({"times": times} if is_one else {})


def test_the_time_code_in_numbers():
    code = TimeCode(2).double()
    with torch.no_grad():
        code.intervals.weight.copy_(torch.arange(4096).double()[:, None] * torch.tensor([1.0, -1]))
        code.moment.weight.copy_(torch.tensor([[2.0], [3.0]]))
        code.moment.bias.copy_(torch.tensor([0.5, 0.25]))
    year = 31_557_600  # seconds
    # 0, then log2 of 1, 2, 8, 1001 times 100; backwards counts as no time at all
    times = torch.tensor([[0, 0, 1, 8, 1008, 1000, year + 1000]])
    got = code(times)[0]
    assert got[:, 0].tolist() == [0, 0, 100, 300, 996, 0, 2491]
    assert torch.equal(got[:, 1], -got[:, 0])
    for row, t in enumerate(times[0].tolist()):
        assert got[row, 2].item() == pytest.approx(math.cos(2 * t / year + 0.5))
        assert got[row, 3].item() == pytest.approx(math.cos((3 * t / year + 0.25) / 100))


def test_any_integers_will_do_for_times():
    times = torch.tensor([[-5, 0, 2**62], [0, 1, 2]])
    assert TimeCode(3)(times).isfinite().all()


def test_experts_of_time_scale_every_feature():
    mixture = TemporalMixture(2, 3).double()
    with torch.no_grad():
        mixture.experts.add_(torch.randn_like(mixture.experts))
    x, code = torch.randn(2, 3, 3, 2).double(), torch.randn(2, 3, 4).double()
    got = mixture(x, code)
    for b in range(2):
        for place in range(3):
            scores = [
                w @ code[b, place] + c
                for w, c in zip(mixture.gate.weight, mixture.gate.bias, strict=True)
            ]
            total = sum(s.exp() for s in scores)
            flat = sum(
                s.exp() / total * v.flatten() * x[b, place].flatten()
                for s, v in zip(scores, mixture.experts, strict=True)
            )
            torch.testing.assert_close(got[b, place], flat.unflatten(0, (3, 2)))
