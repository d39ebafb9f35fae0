"""Tests for mmfuse.fusion.mixer; test_registry.py has what all fusions promise alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmfuse.fusion import MixerFusion
from tests.outcomes import drawn
from tests.references import assert_each_history, gelu, linear, naive_network, norm, plus
from tests.strategies import Sequences, leads, sequences

few = settings(max_examples=10)
small = st.integers(1, 3)
histories = sequences(lead=leads(1), num_modalities=small, dim=small)
Vector = list[float]


@st.composite
def examples(draw: st.DrawFn, **fixed: Any) -> tuple[MixerFusion, Sequences]:
    """A fusion in every configuration, and histories that may be shorter than it allows."""
    case = draw(histories)
    *_, length, num_modalities, dim = case.x.shape
    arguments = {
        "max_length": length + draw(st.integers(0, 2)),
        "num_layers": draw(st.integers(1, 2)),
        "hidden_dim": draw(st.integers(1, 3)),
        "causal": draw(st.booleans()),
        **fixed,
    }
    return drawn(MixerFusion(dim, num_modalities, **arguments)).eval(), case


# -- reference: the formula, read aloud ------------------------------------------------------------


def along(layer: nn.Linear, values: dict[int, float], causal: bool) -> dict[int, float]:
    """Position i sums over the positions that it may hear, out of those that are there."""
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return {
        i: bias[i] + sum(weight[i][j] * v for j, v in values.items() if j <= i or not causal)
        for i in range(len(weight))
    }


def naive_mixer(layers: Any, stream: dict[int, Vector], causal: bool) -> dict[int, Vector]:
    """One modality of one history: the positions where it is seen, and nothing else."""
    for layer in layers:
        rows = {i: norm(layer.time_norm, row) for i, row in stream.items()}
        told: dict[int, Vector] = {i: [] for i in stream}
        for d in range(len(layer.time_norm.weight)):
            hidden = along(layer.time_hidden, {i: row[d] for i, row in rows.items()}, causal)
            out = along(layer.time_out, {i: gelu(v) for i, v in hidden.items()}, causal)
            for i, values in told.items():
                values.append(out[i])
        stream = {i: naive_network(layer, plus(row, told[i])) for i, row in stream.items()}
    return stream


@pytest.mark.parametrize("causal", [True, False])
@few
@given(data=st.data())
def test_matches_naive(causal: bool, data: st.DataObject) -> None:
    """What is not seen is left out along the sequence, and zero in the last layer."""
    fusion, case = data.draw(examples(causal=causal))

    def naive(x: list[list[Vector]], seen: list[list[bool]]) -> list[Vector]:
        together: list[Vector] = [[] for _ in x]
        for m, layers in enumerate(fusion.mixers):
            stream = {i: row[m] for i, row in enumerate(x) if seen[i][m]}
            told = naive_mixer(layers, stream, causal)
            together = [row + told.get(i, [0.0] * fusion.dim) for i, row in enumerate(together)]
        return [linear(fusion.out, norm(fusion.norm, row)) for row in together]

    assert_each_history(fusion, case, naive)


# -- properties ------------------------------------------------------------------------------------


@few
@given(example=examples())
def test_a_shorter_sequence_is_one_that_is_padded(example: tuple[MixerFusion, Sequences]) -> None:
    fusion, (x, present, _) = example
    *lead, length, _, _ = x.shape
    longer = torch.randn(*lead, fusion.max_length, *x.shape[-2:], dtype=x.dtype)
    longer[..., :length, :, :] = x
    there = torch.rand(longer.shape[:-1]) < 0.5
    there[..., :length, :] = present
    real = torch.arange(fusion.max_length) < length
    padded = fusion(longer, there, valid=real.expand(longer.shape[:-2])).fused
    torch.testing.assert_close(padded[..., :length, :], fusion(x, present).fused)
    assert not padded[..., length:, :].any()


def test_a_position_hears_all_or_what_came_before() -> None:
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    for causal in (True, False):
        fusion = drawn(MixerFusion(3, 1, max_length=5, causal=causal)).eval()
        before = fusion(x).fused
        for at in range(4):
            changed = x.clone()
            changed[at] = torch.randn(1, 3)
            heard = (fusion(changed).fused - before).abs().sum(-1) > 1e-9
            assert heard.tolist() == [i >= at or not causal for i in range(4)]


def test_where_nothing_is_present_a_constant_is_left() -> None:
    """Whatever the rest of the history holds."""
    fusion = drawn(MixerFusion(3, 2, max_length=4)).eval()
    present = torch.tensor([True, False, True, False]).unsqueeze(-1).expand(4, 2)
    fused = fusion(torch.randn(4, 2, 3, dtype=torch.float64), present).fused[[1, 3]]
    wanted = fusion.out(fusion.norm.bias).expand(2, 3)
    torch.testing.assert_close(fused, wanted)


def test_no_modality_hears_another_on_its_way() -> None:
    """They meet in the last layer only, so that half of it tells what one mixer made."""
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    fusion = drawn(MixerFusion(3, 2, max_length=4)).eval().requires_grad_(False)
    read = []
    fusion.norm.register_forward_hook(lambda _, inputs, __: read.append(inputs[0]))
    other = x.clone()
    other[:, 1] = torch.randn(4, 3)
    fusion(x)
    fusion(other)
    torch.testing.assert_close(read[0][:, :3], read[1][:, :3])
    assert not torch.allclose(read[0][:, 3:], read[1][:, 3:])


def test_dropout_thins_out_in_training_only() -> None:
    fusion, x = MixerFusion(4, 2, dropout=0.5), torch.randn(8, 2, 4)
    assert not torch.equal(fusion(x).fused, fusion(x).fused)
    fusion.eval()
    assert torch.equal(fusion(x).fused, fusion(x).fused)


def test_dropout_of_everything_leaves_the_streams() -> None:
    fusion, x = MixerFusion(4, 2, num_layers=2, dropout=1.0), torch.randn(8, 2, 4)
    wanted = fusion.out(fusion.norm(x.flatten(-2)))
    torch.testing.assert_close(fusion(x).fused, wanted)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, r"Expected max_length > 0, got 0\."),
        ({"num_layers": 0}, r"Expected num_layers > 0, got 0\."),
        ({"hidden_dim": -1}, r"Expected hidden_dim > 0, got -1\."),
        ({"dropout": 2}, r"Expected 0 <= dropout <= 1, got 2\."),
    ],
)
def test_rejects_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixerFusion(4, 2, **options)


def test_rejects_a_sequence_that_is_too_long() -> None:
    fusion = MixerFusion(4, 2, max_length=3)
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 3, got 4\."):
        fusion(torch.zeros(2, 4, 2, 4))


def test_repr_tells_the_options() -> None:
    shown = repr(MixerFusion(4, 3, max_length=7, causal=False))
    assert "dim=4, num_modalities=3, max_length=7, causal=False" in shown
