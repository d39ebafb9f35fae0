"""Tests for mmfuse.fusion.transformer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from mmfuse.fusion import TransformerFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_layer, norm, plus, seen_by
from tests.strategies import streams

few = settings(max_examples=25)


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2)])
@few
@given(case=streams())
def test_matches_naive(num_layers: int, num_heads: int, case: Streams) -> None:
    """Only what is present is a token: nothing is masked here, it is left out."""
    x = torch.cat([case.x, case.x.flip(-2)], -1)  # an even width
    *_, num_modalities, dim = x.shape
    fusion = TransformerFusion(
        dim, num_modalities, num_layers=num_layers, num_heads=num_heads, hidden_dim=3
    )
    drawn(fusion).eval()

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        tokens = [fusion.token.tolist()]
        tokens += [plus(x[m], fusion.embedding[m].tolist()) for m, p in enumerate(present) if p]
        everybody = range(len(tokens))
        for layer in fusion.layers:
            tokens = naive_layer(layer, tokens, seen_by(everybody, everybody, causal=False))
        return norm(fusion.norm, tokens[0])

    assert_each_row(fusion, Streams(x, case.present), naive)


def test_attention_runs_over_modalities_even_where_time_is_as_long() -> None:
    fusion, x = TransformerFusion(4, 3).eval(), torch.randn(2, 3, 3, 4)
    other = x.clone()
    other[:, 1:] = 0
    torch.testing.assert_close(fusion(other).fused[:, 0], fusion(x).fused[:, 0])


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = TransformerFusion(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        TransformerFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        TransformerFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        TransformerFusion(4, 2, dropout=2)
