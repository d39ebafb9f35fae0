"""Tests for mmfuse.fusion.nova."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import NOVAFusion
from tests.outcomes import assert_same, drawn
from tests.references import (
    assert_each_history,
    attend,
    linear,
    naive_linear,
    naive_network,
    norm,
    plus,
    seen_by,
)
from tests.strategies import Sequences, leads, sequences

few = settings(max_examples=12)
histories = sequences(lead=leads(1), num_modalities=st.integers(1, 3), dim=st.sampled_from([4, 6]))


@pytest.mark.parametrize(("num_layers", "num_heads"), [(1, 1), (2, 2)])
@few
@given(case=histories, causal=st.booleans(), data=st.data())
def test_matches_naive(
    num_layers: int, num_heads: int, case: Sequences, causal: bool, data: st.DataObject
) -> None:
    """Keys are the positions where the item itself is there; every position asks."""
    num_modalities, dim = case.x.shape[-2:]
    target, width = data.draw(st.integers(0, num_modalities - 1)), dim // num_heads
    fusion = NOVAFusion(
        dim,
        num_modalities,
        target=target,
        max_length=5,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=3,
        causal=causal,
    )
    drawn(fusion).eval()
    positions = fusion.positions.tolist()

    def naive(x: list[list[list[float]]], seen: list[list[bool]]) -> list[list[float]]:
        keys = [i for i, there in enumerate(seen) if there[target]]
        state = [x[i][target] if i in keys else [0.0] * dim for i in range(len(x))]
        visible = [[keys[j] for j in some] for some in seen_by(range(len(x)), keys, causal=causal)]
        for layer, side_norm in zip(fusion.layers, fusion.side_norms, strict=True):
            attention = layer.attention
            ((*pair,),) = attention.weight.tolist()
            query, key, value = [], [], []
            for i, row in enumerate(state):
                others = [x[i][m] for m in range(num_modalities) if m != target and seen[i][m]]
                together = norm(side_norm, plus(row, positions[i], *others))
                query.append(naive_linear(pair[:dim], together))
                key.append(naive_linear(pair[dim:], together))
                value.append(linear(attention.value, norm(layer.attention_norm, row)))
            for i, row in enumerate(state):
                read: list[float] = []
                for start in range(0, dim, width):
                    head = slice(start, start + width)
                    there = [key[j][head] for j in visible[i]], [value[j][head] for j in visible[i]]
                    read += attend(query[i][head], *there)
                state[i] = naive_network(layer, plus(row, linear(attention.out, read)))
        return [norm(fusion.norm, row) for row in state]

    assert_each_history(fusion, case, naive)


def sides_drawn_anew(x: torch.Tensor, target: int) -> torch.Tensor:
    other = torch.randn_like(x)
    other[..., target, :] = x[..., target, :]
    return other


@pytest.mark.parametrize("causal", [True, False])
def test_side_information_never_enters_the_values(causal: bool) -> None:
    """Where all items are alike it does not matter where a position looks."""
    fusion = drawn(NOVAFusion(4, 3, target=1, num_layers=2, causal=causal)).eval()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    assert not torch.allclose(fusion(sides_drawn_anew(x, 1)).fused, fusion(x).fused)
    x[..., 1, :] = x[:, :1, 1, :]
    fused = fusion(x).fused
    torch.testing.assert_close(fusion(sides_drawn_anew(x, 1)).fused, fused)
    torch.testing.assert_close(fused, fused[:, :1].expand_as(fused))


def test_side_information_has_no_effect_on_a_single_position() -> None:
    fusion, x = drawn(NOVAFusion(4, 3, num_layers=2)).eval(), torch.randn(5, 1, 3, 4).double()
    torch.testing.assert_close(fusion(sides_drawn_anew(x, 0)).fused, fusion(x).fused)
    nobody = torch.tensor([False, True, True]).expand(5, 1, 3)
    alike = fusion(x, nobody).fused
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))


def test_masking_side_information_equals_dropping_it() -> None:
    more = drawn(NOVAFusion(4, 3, target=2, num_layers=2)).eval()
    less = NOVAFusion(4, 2, target=1, num_layers=2).double().eval()
    less.load_state_dict(more.state_dict())
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    present = torch.tensor([True, False, True]).expand(2, 5, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[..., [0, 2], :]).fused)


def test_positions_enter_the_attention_only() -> None:
    fusion, x = drawn(NOVAFusion(4, 1)).eval(), torch.randn(5, 1, 4, dtype=torch.float64)
    before = fusion(x).fused
    torch.nn.init.normal_(fusion.positions)
    after = fusion(x).fused
    assert_same(after[0], before[0])  # a first position has nowhere else to look
    assert not torch.allclose(after, before)


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = NOVAFusion(4, 2, dropout=0.5), torch.randn(8, 5, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        NOVAFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        NOVAFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected max_length > 0, got 0\."):
        NOVAFusion(4, 2, max_length=0)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        NOVAFusion(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        NOVAFusion(4, 2, dropout=2)


@pytest.mark.parametrize("target", [2, -1])
def test_rejects_a_target_that_is_no_modality(target: int) -> None:
    with pytest.raises(
        ValueError, match=rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    ):
        NOVAFusion(4, 2, target=target)


def test_rejects_a_history_that_is_too_long() -> None:
    fusion = NOVAFusion(4, 2, max_length=3)
    assert fusion(torch.zeros(3, 2, 4)).fused.shape == (3, 4)
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 3, got 4\."):
        fusion(torch.zeros(4, 2, 4))
