"""What fusions over sequences promise alike, beside what all fusions do (test_registry.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from mmfuse.fusion import available
from mmfuse.testing import assert_block_contract
from tests.fusions import made, made_for
from tests.outcomes import assert_same, outcome, places
from tests.strategies import Sequences, sequences, with_nan

few = settings(max_examples=15)
each_fusion = pytest.mark.parametrize("name", available("sequences"))
each_way = pytest.mark.parametrize("causal", [True, False])
PRESENT = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.7
VALID = torch.tensor([[True, True, True], [True, True, False]])


def fused(fusion: nn.Module, case: Sequences) -> Tensor:
    output: Tensor = fusion(case.x, case.present, valid=case.valid).fused
    return output


def rounding(name: str) -> dict[str, float]:
    """What may differ where nothing is heard: a Fourier transform adds what cancels out."""
    return {"rtol": 0, "atol": 1e-10 if name == "frequency" else 0}


# -- time ------------------------------------------------------------------------------------------


@each_fusion
@few
@given(case=sequences())
def test_what_is_later_changes_nothing(name: str, case: Sequences) -> None:
    fusion, length = made_for(name, case.x), case.x.shape[-3]
    whole = fused(fusion, case)
    for end in range(length):
        x = torch.cat([case.x[..., :end, :, :], case.x[..., end:, :, :].exp()], dim=-3)
        changed = fused(fusion, case._replace(x=x))
        torch.testing.assert_close(changed[..., :end, :], whole[..., :end, :], **rounding(name))


@each_fusion
def test_what_is_earlier_counts(name: str) -> None:
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    fusion = made(name, 4, 3).double()  # parameters as large as made_for's attend to one key only
    other = torch.cat([x[:1].flip(-1), x[1:]])
    assert not torch.allclose(fusion(other).fused[-1], fusion(x).fused[-1])


@each_fusion
def test_what_is_later_counts_where_it_may(name: str) -> None:
    x = torch.randn(4, 3, 4, dtype=torch.float64)
    fusion = made(name, 4, 3, causal=False).double()
    other = torch.cat([x[:-1], x[-1:].flip(-1)])
    assert not torch.allclose(fusion(other).fused[0], fusion(x).fused[0])


@each_fusion
@each_way
@few
@given(case=sequences())
def test_padding_behind_is_as_good_as_none(name: str, causal: bool, case: Sequences) -> None:
    fusion = made_for(name, case.x, causal=causal)
    length = case.x.shape[-3] - 1
    valid = case.valid.clone()
    valid[..., length:] = False
    padded = fused(fusion, case._replace(valid=valid))
    if length:
        cut = Sequences(case.x[..., :-1, :, :], case.present[..., :-1, :], case.valid[..., :-1])
        torch.testing.assert_close(padded[..., :-1, :], fused(fusion, cut))
    assert (padded[..., length:, :] == 0).all()


@each_fusion
@each_way
@few
@given(case=sequences())
def test_nan_of_padding_and_of_the_absent_reaches_nothing(
    name: str, causal: bool, case: Sequences
) -> None:
    fusion = made_for(name, case.x, causal=causal)
    seen = case.present & case.valid.unsqueeze(-1)
    dirty = outcome(fusion, with_nan(case.x, seen), case.present, valid=case.valid)
    assert_same(dirty, outcome(fusion, case.x, case.present, valid=case.valid))
    assert (dirty[0][0][~case.valid] == 0).all()
    assert (dirty[1][0][~seen] == 0).all()


@each_fusion
@each_way
def test_histories_with_nothing_are_finite(name: str, causal: bool) -> None:
    x = torch.full((2, 3, 3, 4), torch.nan, dtype=torch.float64)
    fusion = made_for(name, x, causal=causal)
    (read,), (of_x, *_) = outcome(fusion, x, torch.zeros(2, 3, 3, dtype=torch.bool))
    assert read.isfinite().all()
    assert_same(read[0], read[1])
    assert_same(of_x, torch.zeros_like(of_x))


# -- shape -----------------------------------------------------------------------------------------


@each_fusion
@each_way
@few
@given(case=sequences())
def test_each_history_is_fused_as_if_alone(name: str, causal: bool, case: Sequences) -> None:
    fusion = made_for(name, case.x, causal=causal)
    whole = fused(fusion, case)
    assert whole.shape == (*case.x.shape[:-2], case.x.shape[-1])
    for place in places(case.x.shape[:-3]):
        alone = fused(fusion, Sequences(*(part[place] for part in case)))
        torch.testing.assert_close(whole[place], alone)


@each_fusion
@pytest.mark.parametrize("lead", [(0, 3), (2, 0), (0,)])
def test_nobody_and_nothing_is_fused_to_nothing(name: str, lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, 3, 4, requires_grad=True)
    read = made(name, 4, 3)(x, torch.ones(*lead, 3, dtype=torch.bool)).fused
    assert read.shape == (*lead, 4)
    read.sum().backward()


@each_fusion
def test_a_single_row_is_a_history_of_one(name: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    fusion, present = made_for(name, x), torch.tensor([True, False, True])
    for valid in (torch.tensor(True), torch.tensor(False)):
        alone = fusion(x, present, valid=valid).fused
        assert_same(alone, fusion(x[None], present[None], valid=valid[None]).fused[0])


@each_fusion
@pytest.mark.parametrize("masked", [False, True])
def test_batched_by_vmap_it_gives_the_same_numbers(name: str, masked: bool) -> None:
    fusion, x = made(name, 4, 3), torch.randn(2, 3, 3, 4)
    inputs = (x, PRESENT) if masked else (x,)
    batched = torch.vmap(lambda *parts: fusion(*parts).fused)(*inputs)
    torch.testing.assert_close(batched, fusion(*inputs).fused)


@each_fusion
@pytest.mark.parametrize("masked", [False, True])
def test_exported_it_gives_the_eager_numbers(name: str, masked: bool) -> None:
    """For any number of histories, of any length that it takes."""
    fusion, auto = made(name, 4, 3), torch.export.Dim.AUTO
    masks: dict[str, Any] = {"present": PRESENT, "valid": VALID} if masked else {}
    places_in = {0: auto, 1: auto}
    shapes = {"x": places_in, **dict.fromkeys(masks, places_in)}
    program = torch.export.export(
        fusion, (torch.randn(2, 3, 3, 4),), masks, dynamic_shapes=shapes
    ).module()
    for length in (1, 5, 6):  # of six at most
        x, more = torch.randn(4, length, 3, 4), {}
        for mask, value in masks.items():
            more[mask] = value.repeat(2, 2, *[1] * (value.ndim - 2))[:, :length]
        torch.testing.assert_close(program(x, **more), fusion(x, **more))


@each_fusion
@each_way
def test_contract_with_padding(name: str, causal: bool) -> None:
    fusion, x = made(name, 4, 3, causal=causal), torch.randn(2, 3, 3, 4)
    assert_block_contract(fusion, x, PRESENT, keywords={"valid": VALID})


# -- errors ----------------------------------------------------------------------------------------


@each_fusion
def test_rejects_a_mask_of_another_shape(name: str) -> None:
    fusion, x = made(name, 4, 3), torch.randn(2, 3, 3, 4)
    with pytest.raises(ValueError, match=r"Expected valid of shape \(2, 3\), got \(3,\)\."):
        fusion(x, valid=VALID[0])
    with pytest.raises(ValueError, match=r"Expected valid of dtype torch\.bool, got .*int64\."):
        fusion(x, valid=VALID.long())


@pytest.mark.parametrize("name", sorted({*available("sequences")} - {"mult"}))
def test_rejects_more_positions_than_it_has(name: str) -> None:
    with pytest.raises(ValueError, match=r"Expected L <= max_length = 2, got 3\."):
        made(name, 4, 3, max_length=2)(torch.randn(2, 3, 3, 4))
    with pytest.raises(ValueError, match=r"Expected max_length > 0, got 0\."):
        made(name, 4, 3, max_length=0)
