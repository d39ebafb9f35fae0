"""Tests for mmfuse.fusion.fdsa."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import FDSAFusion
from tests.outcomes import drawn
from tests.references import assert_each_history, linear, naive_layer, norm, plus, seen_by
from tests.strategies import Sequences, leads, sequences

few = settings(max_examples=12)
histories = sequences(lead=leads(1), num_modalities=st.integers(1, 3), dim=st.sampled_from([4, 6]))


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2)])
@few
@given(case=histories, causal=st.booleans())
def test_matches_naive(num_layers: int, num_heads: int, case: Sequences, causal: bool) -> None:
    """Where a modality is absent its Transformer has no position."""
    num_modalities, dim = case.x.shape[-2:]
    fusion = FDSAFusion(
        dim,
        num_modalities,
        max_length=5,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=3,
        causal=causal,
    )
    drawn(fusion).eval()
    positions = fusion.positions.tolist()

    def naive(x: list[list[list[float]]], seen: list[list[bool]]) -> list[list[float]]:
        joint = [[0.0] * (num_modalities * dim) for _ in x]
        for m in range(num_modalities):
            there = [i for i, row in enumerate(seen) if row[m]]
            state = [plus(x[i][m], positions[i]) for i in there]
            for layer in fusion.layers[m]:
                state = naive_layer(layer, state, seen_by(there, there, causal=causal))
            for i, row in zip(there, state, strict=True):
                joint[i][m * dim : (m + 1) * dim] = norm(fusion.norms[m], row)
        return [linear(fusion.out, row) for row in joint]

    assert_each_history(fusion, case, naive)


def only(x: torch.Tensor, m: int) -> torch.Tensor:
    """A mask with one modality there."""
    present = torch.zeros(x.shape[:-1], dtype=torch.bool)
    present[..., m] = True
    return present


def test_each_stream_is_read_alone() -> None:
    """What the modalities contribute alone adds up to what they give together."""
    fusion, x = drawn(FDSAFusion(4, 3)).eval(), torch.randn(2, 5, 3, 4, dtype=torch.float64)
    alone = [fusion(x, only(x, m)).fused - fusion.out.bias for m in range(3)]
    torch.testing.assert_close(fusion(x).fused, sum(alone) + fusion.out.bias)


def test_nothing_present_leaves_the_bias() -> None:
    fusion, x = drawn(FDSAFusion(4, 2)).eval(), torch.randn(3, 2, 4, dtype=torch.float64)
    present = torch.tensor([[True, True], [False, False], [True, False]])
    torch.testing.assert_close(fusion(x, present).fused[1], fusion.out.bias)


def test_positions_tell_the_order() -> None:
    fusion, x = drawn(FDSAFusion(4, 2, causal=False)).eval(), torch.randn(3, 2, 4).double()
    torch.nn.init.zeros_(fusion.positions)
    torch.testing.assert_close(fusion(x.flip(0)).fused, fusion(x).fused.flip(0))
    torch.nn.init.normal_(fusion.positions)
    assert not torch.allclose(fusion(x.flip(0)).fused, fusion(x).fused.flip(0))


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = FDSAFusion(4, 2, dropout=0.5), torch.randn(8, 5, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        FDSAFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        FDSAFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected max_length > 0, got 0\."):
        FDSAFusion(4, 2, max_length=0)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        FDSAFusion(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        FDSAFusion(4, 2, dropout=2)


def test_rejects_a_history_that_is_too_long() -> None:
    fusion = FDSAFusion(4, 2, max_length=3)
    assert fusion(torch.zeros(3, 2, 4)).fused.shape == (3, 4)
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 3, got 4\."):
        fusion(torch.zeros(4, 2, 4))
