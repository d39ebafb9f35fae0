"""Tests for mmfuse.fusion.dif."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse.fusion import DIFFusion
from tests.outcomes import drawn
from tests.references import (
    assert_each_history,
    linear,
    mixed,
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
    """A map for each kind that is there; keys are the positions where the item itself is."""
    num_modalities, dim = case.x.shape[-2:]
    target, width = data.draw(st.integers(0, num_modalities - 1)), dim // num_heads
    fusion = DIFFusion(
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
    others = [m for m in range(num_modalities) if m != target]

    def naive(x: list[list[list[float]]], seen: list[list[bool]]) -> list[list[float]]:
        keys = [i for i, there in enumerate(seen) if there[target]]
        state = [x[i][target] if i in keys else [0.0] * dim for i in range(len(x))]
        visible = [[keys[j] for j in some] for some in seen_by(range(len(x)), keys, causal=causal)]
        for layer in fusion.layers:
            asking = [norm(layer.attention_norm, row) for row in state]
            value = [linear(layer.attention.value, row) for row in asking]
            kinds = [dict(enumerate(asking))]
            kinds += [{i: row[m] for i, row in enumerate(x) if seen[i][m]} for m in others]
            kinds += [dict(enumerate(positions[: len(x)]))]
            maps = []
            for weight, kind in zip(layer.attention.weight.tolist(), kinds, strict=True):
                query = {i: naive_linear(weight[:dim], vector) for i, vector in kind.items()}
                key = {i: naive_linear(weight[dim:], vector) for i, vector in kind.items()}
                maps.append((query, key))
            for i, row in enumerate(state):
                read: list[float] = []
                for start in range(0, dim, width):
                    head, scores = slice(start, start + width), []
                    for j in visible[i]:
                        both = ((q[i], k[j]) for q, k in maps if i in q and j in k)
                        products = [naive_linear([q[head]], k[head])[0] for q, k in both]
                        scores.append(sum(products) / math.sqrt(width))
                    read += mixed(scores, [value[j][head] for j in visible[i]], width)
                state[i] = naive_network(layer, plus(row, linear(layer.attention.out, read)))
        return [norm(fusion.norm, row) for row in state]

    assert_each_history(fusion, case, naive)


def sides_drawn_anew(x: torch.Tensor, target: int) -> torch.Tensor:
    other = torch.randn_like(x)
    other[..., target, :] = x[..., target, :]
    return other


@pytest.mark.parametrize("causal", [True, False])
def test_side_information_never_enters_the_values(causal: bool) -> None:
    """Where all items are alike it does not matter where a position looks."""
    fusion = drawn(DIFFusion(4, 3, target=1, num_layers=2, causal=causal)).eval()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    assert not torch.allclose(fusion(sides_drawn_anew(x, 1)).fused, fusion(x).fused)
    x[..., 1, :] = x[:, :1, 1, :]
    fused = fusion(x).fused
    torch.testing.assert_close(fusion(sides_drawn_anew(x, 1)).fused, fused)
    torch.testing.assert_close(fused, fused[:, :1].expand_as(fused))


def without_maps(fusion: DIFFusion, kept: list[int], less: DIFFusion) -> DIFFusion:
    """Another fusion with the same parameters, but for the maps that it has not."""
    state = fusion.state_dict()
    for name, value in state.items():
        if name.endswith("attention.weight"):
            state[name] = value[kept]
    less.double().eval().load_state_dict(state)
    return less


def test_masking_side_information_equals_dropping_it() -> None:
    """An absent modality adds nothing to the scores: its map is not missed."""
    more = drawn(DIFFusion(4, 3, target=1, num_layers=2)).eval()
    less = without_maps(more, [0, 2, 3], DIFFusion(4, 2, target=0, num_layers=2))
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    present = torch.tensor([False, True, True]).expand(2, 5, 3)
    torch.testing.assert_close(more(x, present).fused, less(x[..., 1:, :]).fused)
    x[..., 0, :] = 0
    torch.testing.assert_close(more(x).fused, less(x[..., 1:, :]).fused)


def test_a_side_that_one_position_alone_has_adds_to_no_other_score() -> None:
    fusion = drawn(DIFFusion(4, 2, causal=False)).eval()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    present = torch.tensor([[True, True], [True, False], [True, False]])
    without = present.clone()
    without[0, 1] = False
    got, wanted = fusion(x, present).fused, fusion(x, without).fused
    torch.testing.assert_close(got[1:], wanted[1:])
    assert not torch.allclose(got[0], wanted[0])


def test_without_sides_there_is_a_single_map() -> None:
    """That of the item itself, when other modalities and positions are zero."""
    fusion = drawn(DIFFusion(4, 3, num_heads=2)).eval()
    torch.nn.init.zeros_(fusion.positions)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    x[..., 1:, :] = 0
    before = fusion(x).fused
    weight = fusion.layers[0].attention.weight
    torch.nn.init.normal_(weight[1:].detach())
    torch.testing.assert_close(fusion(x).fused, before)
    torch.nn.init.normal_(weight[0].detach())
    assert not torch.allclose(fusion(x).fused, before)


def test_side_information_has_no_effect_on_a_single_position() -> None:
    fusion, x = drawn(DIFFusion(4, 3, num_layers=2)).eval(), torch.randn(5, 1, 3, 4).double()
    torch.testing.assert_close(fusion(sides_drawn_anew(x, 0)).fused, fusion(x).fused)


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = DIFFusion(4, 2, dropout=0.5), torch.randn(8, 5, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Expected dim divisible by num_heads = 3, got 4\."):
        DIFFusion(4, 2, num_heads=3)
    with pytest.raises(ValueError, match=r"Expected num_layers > 0, got 0\."):
        DIFFusion(4, 2, num_layers=0)
    with pytest.raises(ValueError, match=r"Expected max_length > 0, got 0\."):
        DIFFusion(4, 2, max_length=0)
    with pytest.raises(ValueError, match=r"Expected hidden_dim > 0, got 0\."):
        DIFFusion(4, 2, hidden_dim=0)
    with pytest.raises(ValueError, match=r"Expected 0 <= dropout <= 1, got 2\."):
        DIFFusion(4, 2, dropout=2)


@pytest.mark.parametrize("target", [2, -1])
def test_rejects_a_target_that_is_no_modality(target: int) -> None:
    with pytest.raises(
        ValueError, match=rf"Expected 0 <= target < num_modalities = 2, got {target}\."
    ):
        DIFFusion(4, 2, target=target)


def test_rejects_a_history_that_is_too_long() -> None:
    fusion = DIFFusion(4, 2, max_length=3)
    assert fusion(torch.zeros(3, 2, 4)).fused.shape == (3, 4)
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 3, got 4\."):
        fusion(torch.zeros(4, 2, 4))
