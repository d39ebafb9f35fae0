"""Tests for mmfuse.fusion.attention_pooling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import AttentionPoolingFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn, places
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


def naive_attention(
    fusion: AttentionPoolingFusion, x: list[list[float]], present: list[bool]
) -> tuple[list[float], list[list[float]]]:
    """The fused vector, and the weights of each head."""
    width = fusion.dim // fusion.num_heads
    there = [m for m, seen in enumerate(present) if seen]
    keys = {m: naive_linear(fusion.key.weight.tolist(), x[m]) for m in there}
    values = {m: naive_linear(fusion.value.weight.tolist(), x[m]) for m in there}
    together, every = [0.0] * fusion.dim, []
    for h, query in enumerate(fusion.query.tolist()):
        own = slice(h * width, (h + 1) * width)
        asked = {m: naive_linear([query], keys[m][own])[0] for m in there}
        scores = {m: math.exp(answer / math.sqrt(width)) for m, answer in asked.items()}
        weights = [scores[m] / sum(scores.values()) if m in scores else 0.0 for m in range(len(x))]
        for m in there:
            for d, value in enumerate(values[m][own]):
                together[h * width + d] += weights[m] * value
        every.append(weights)
    return naive_linear(fusion.out.weight.tolist(), together), every


@pytest.mark.parametrize("num_heads", [1, 2])
@few
@given(case=streams())
def test_matches_naive(num_heads: int, case: Streams) -> None:
    x = torch.cat([case.x, case.x.flip(-2)], -1)  # an even width
    fusion = drawn(AttentionPoolingFusion(x.shape[-1], x.shape[-2], num_heads=num_heads))
    even = Streams(x, case.present)
    assert_each_row(fusion, even, lambda x, present: naive_attention(fusion, x, present)[0])
    weights = fusion(x, case.present).weights
    for place in places(case.present.shape[:-1]):
        heads = naive_attention(fusion, x[place].tolist(), case.present[place].tolist())[1]
        wanted = torch.tensor(heads, dtype=torch.float64).mean(0)
        torch.testing.assert_close(weights[place], wanted)


def test_dropping_a_modality_equals_masking_it() -> None:
    more, less = drawn(AttentionPoolingFusion(4, 3)), AttentionPoolingFusion(4, 2).double()
    less.load_state_dict(more.state_dict())
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(5, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[:, [0, 2]]).fused)


def test_attention_runs_over_modalities_even_where_time_is_as_long() -> None:
    """A block that mixes up the axes is wrong most quietly where they are equally long."""
    fusion, x = AttentionPoolingFusion(4, 3), torch.randn(2, 3, 3, 4)
    other = x.clone()
    other[:, 1:] = 0  # later moments change nothing at the first
    torch.testing.assert_close(fusion(other).fused[:, 0], fusion(x).fused[:, 0])


def test_equal_modalities_get_equal_weights() -> None:
    x = torch.randn(5, 1, 4).expand(5, 3, 4)
    weights = AttentionPoolingFusion(4, 3, num_heads=2)(x).weights
    torch.testing.assert_close(weights, torch.full((5, 3), 1 / 3))


def test_rejects_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        AttentionPoolingFusion(4, 2, num_heads=3)
