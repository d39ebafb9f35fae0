"""The id -100 is unknown: nobody else's, in every loss that reads ids."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmfuse.losses import (
    ModalitySwapInfoNCE,
    debiased_info_nce,
    info_nce,
    multiway_info_nce,
    sigmoid_contrastive_loss,
    supervised_contrastive_loss,
)
from tests.contrast import value_and_gradients
from tests.strategies import seeds

UNKNOWN = -100
OPTIONS = [
    {"symmetric": True},
    {"symmetric": True, "same_id": "positive"},
    {"symmetric": True, "same_id": "positive", "chunk_size": 2},
    {"chunk_size": "auto"},
]


def swapped(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    return ModalitySwapInfoNCE(0.0)(torch.stack([x, y], 1), lambda views, m: views, ids=ids)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **{
        f"info_nce {options}": lambda x, y, ids, options=options: info_nce(x, y, ids=ids, **options)
        for options in OPTIONS
    },
    "shared negatives": lambda x, y, ids: info_nce(x, y, y.flip(0), ids=ids, key_ids=ids.flip(0)),
    "negatives of a row": lambda x, y, ids: info_nce(
        x, y, y.expand(len(x), -1, -1), ids=ids, key_ids=ids.expand(len(x), -1)
    ),
    "multiway": lambda x, y, ids: multiway_info_nce(torch.stack([x, y], 1), ids=ids),
    "swap": swapped,
    "debiased": lambda x, y, ids: debiased_info_nce(x, y, ids=ids),
    "debiased explicit": lambda x, y, ids: debiased_info_nce(x, y, y, ids=ids, key_ids=ids.flip(0)),
    "sigmoid": lambda x, y, ids: sigmoid_contrastive_loss(x, y, ids=ids),
    "sigmoid positive": lambda x, y, ids: sigmoid_contrastive_loss(
        x, y, ids=ids, same_id="positive"
    ),
    "supervised": lambda x, y, ids: supervised_contrastive_loss(torch.stack([x, y], 1), ids),
}


EXPLICIT = ["shared negatives", "negatives of a row", "debiased explicit"]


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(EXPLICIT)))
@given(st.lists(st.sampled_from([UNKNOWN, 0, 1]), min_size=1, max_size=6), seeds)
def test_unknown_is_as_an_id_of_its_own(name, known, seed):
    torch.manual_seed(seed)
    x, y = torch.randn(2, len(known), 3, dtype=torch.float64)
    ids = torch.tensor(known)
    own = torch.where(ids == UNKNOWN, 10 + torch.arange(len(ids)), ids)
    for got, wanted in zip(
        value_and_gradients(lambda x, y: LOSSES[name](x, y, ids), x, y),
        value_and_gradients(lambda x, y: LOSSES[name](x, y, own), x, y),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", EXPLICIT)
def test_an_unknown_row_meets_unknown_keys(name):
    """All rows and keys unknown: as if there were no ids."""
    x, y = torch.randn(2, 4, 3, dtype=torch.float64)
    known, unknown = torch.arange(4), torch.full((4,), UNKNOWN)
    never = {"ids": known, "key_ids": 10 + known}
    keys = {
        "shared negatives": lambda: info_nce(x, y, y.flip(0), **never),
        "negatives of a row": lambda: info_nce(
            x, y, y.expand(4, -1, -1), ids=known, key_ids=(10 + known).expand(4, -1)
        ),
        "debiased explicit": lambda: debiased_info_nce(x, y, y, **never),
    }
    torch.testing.assert_close(LOSSES[name](x, y, unknown), keys[name]())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8, torch.uint8])
def test_ids_of_any_integer_type(dtype):
    x, y = torch.randn(2, 4, 3)
    ids = torch.tensor([0, 1, 1, 2])
    for options in OPTIONS:
        wanted = info_nce(x, y, ids=ids, **options)
        torch.testing.assert_close(info_nce(x, y, ids=ids.to(dtype), **options), wanted)


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
@pytest.mark.parametrize("loss", [info_nce, sigmoid_contrastive_loss])
def test_a_temperature_that_is_a_tensor_is_checked_too(loss, value):
    with pytest.raises(ValueError, match=r"Expected temperature > 0, got"):
        loss(torch.ones(2, 3), torch.ones(2, 3), temperature=torch.tensor(value))
