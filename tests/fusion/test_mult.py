"""Tests for mmfuse.fusion.mult."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmfuse._transformer import sinusoids
from mmfuse.fusion import MulTFusion
from tests.outcomes import drawn
from tests.references import assert_each_history, linear, naive_layer, norm, plus, seen_by
from tests.strategies import Sequences, sequences

few = settings(max_examples=5)
histories = sequences(lead=st.just(()), num_modalities=st.integers(1, 3), dim=st.just(4))
GAPS = Sequences(  # each modality is absent where another one is present
    torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0)).double(),
    torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]).bool(),
    torch.tensor([True, True, True, False]),
)

# -- reference: the formula, read aloud ------------------------------------------------------------


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2)])
@few
@given(case=histories, causal=st.booleans())
@example(case=GAPS, causal=True)
@example(case=GAPS, causal=False)
def test_matches_naive(num_layers: int, num_heads: int, case: Sequences, causal: bool) -> None:
    """Where a modality is absent it has no position, neither to ask nor to be read."""
    num_modalities, dim = case.x.shape[-2:]
    fusion = MulTFusion(
        dim,
        num_modalities,
        num_layers=num_layers,
        num_self_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=3,
        causal=causal,
    )
    drawn(fusion).eval()
    width = fusion.out.in_features // num_modalities

    def naive(x: list[list[list[float]]], seen: list[list[bool]]) -> list[list[float]]:
        positions = sinusoids(len(x), dim).tolist()
        there = [[i for i, row in enumerate(seen) if row[m]] for m in range(num_modalities)]
        streams = [
            [plus([math.sqrt(dim) * value for value in x[i][m]], positions[i]) for i in there[m]]
            for m in range(num_modalities)
        ]
        joint = [[0.0] * (num_modalities * width) for _ in x]
        for m, stream in enumerate(streams):
            state = stream if num_modalities == 1 else [[] for _ in stream]
            for j in range(num_modalities):
                if j == m:
                    continue
                told = [norm(fusion.source_norms[f"{j}_to_{m}"], row) for row in streams[j]]
                read, visible = stream, seen_by(there[m], there[j], causal=causal)
                for layer in fusion.cross[f"{j}_to_{m}"]:
                    read = naive_layer(layer, read, visible, told)
                state = [[*before, *row] for before, row in zip(state, read, strict=True)]
            for layer in fusion.own[m]:
                state = naive_layer(layer, state, seen_by(there[m], there[m], causal=causal))
            for i, row in zip(there[m], state, strict=True):
                joint[i][m * width : (m + 1) * width] = row
        return [linear(fusion.out, row) for row in joint]

    assert_each_history(fusion, case, naive)


@pytest.mark.parametrize(("length", "dim"), [(1, 1), (7, 5), (30, 6)])
def test_sinusoids_match_naive(length: int, dim: int) -> None:
    wanted = torch.zeros(length, dim)
    for place in range(length):
        for d in range(dim):
            angle = place / 10000 ** (2 * (d // 2) / dim)
            wanted[place, d] = math.cos(angle) if d % 2 else math.sin(angle)
    torch.testing.assert_close(sinusoids(length, dim), wanted)


# -- properties ------------------------------------------------------------------------------------


def test_one_modality_reads_itself_alone() -> None:
    fusion, x = drawn(MulTFusion(4, 1)).eval(), torch.randn(5, 1, 4, dtype=torch.float64)
    assert len(fusion.cross) == 0
    read = fusion.own[0][0](2 * x[:, 0] + sinusoids(5, 4), causal=True)
    torch.testing.assert_close(fusion(x).fused, fusion.out(read))


def test_a_position_that_sees_no_key_reads_zeros() -> None:
    """Whatever keys and values would have been, what it reads is the bias of the way out."""
    fusion, x = drawn(MulTFusion(4, 2)).eval(), torch.randn(3, 2, 4, dtype=torch.float64)
    present = torch.tensor([[True, False]]).expand(3, 2)
    before = fusion(x, present).fused
    attention = fusion.cross["1_to_0"][0].attention
    for part in (attention.query, attention.told):
        torch.nn.init.normal_(part.weight)
        torch.nn.init.normal_(part.bias)
    torch.testing.assert_close(fusion(x, present).fused, before)
    torch.nn.init.normal_(attention.out.bias)
    assert not torch.allclose(fusion(x, present).fused, before)


def test_modalities_read_each_other() -> None:
    """All of them, at this position and at earlier ones."""
    fusion, x = MulTFusion(4, 3).double().eval(), torch.randn(4, 3, 4, dtype=torch.float64)
    fused = fusion(x).fused
    for m in range(3):
        other = x.clone()
        other[1, m] = torch.randn(4)
        changed = (fusion(other).fused - fused).abs().amax(-1) > 1e-9
        assert changed.tolist() == [False, True, True, True]


def test_layers_that_follow_are_as_many_times_wider_as_their_input() -> None:
    fusion = MulTFusion(4, 3, hidden_dim=5)
    assert fusion.cross["0_to_1"][0].hidden.out_features == 5
    assert fusion.own[0][0].hidden.in_features == 8
    assert fusion.own[0][0].hidden.out_features == 10
    assert MulTFusion(4, 3).own[0][0].hidden.out_features == 32


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = MulTFusion(4, 2, dropout=0.5), torch.randn(8, 5, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


# -- errors ----------------------------------------------------------------------------------------


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        MulTFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        MulTFusion(4, 4, num_heads=3)  # though three others are 12 wide
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        MulTFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected num_self_layers > 0, got 0\."):
        MulTFusion(4, 2, num_self_layers=0)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        MulTFusion(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        MulTFusion(4, 2, dropout=2)
