"""Tests for mmfuse.fusion.mixture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from mmfuse import experts
from mmfuse.fusion import MixtureFusion
from mmfuse.types import Streams
from tests.outcomes import assert_same, drawn, places
from tests.strategies import streams

few = settings(max_examples=25)
#: Routers on the concatenation of three modalities of width 4, for 5 experts.
ROUTERS: dict[str, Callable[[], nn.Module]] = {
    "top k": lambda: experts.TopKRouter(12, 5, 2),
    "noisy": lambda: experts.NoisyTopKRouter(12, 5, 2),
    "sigmoid": lambda: experts.SigmoidRouter(12, 5, 2),
    "soft": lambda: experts.SoftRouter(12, 5),
    "slots": lambda: experts.SlotRouter(12, 5, 2),
    "expert choice": lambda: experts.ExpertChoiceRouter(12, 5, capacity_factor=2.0),
    "hash": lambda: experts.HashRouter(7, 5),
    "attentive": lambda: experts.AttentiveRouter(12, 5),
}


@few
@given(case=streams())
def test_each_row_is_the_weighted_sum_of_its_experts(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(MixtureFusion(dim, num_modalities, num_experts=3, hidden_dim=2))
    bank, router = fusion.mixture.experts, fusion.mixture.router
    fused = fusion(case.x, case.present).fused
    for place in places(case.x.shape[:-2]):
        seen = torch.where(case.present[place].unsqueeze(-1), case.x[place], 0.0).flatten()
        weights = router(seen).expert_weight
        each = [bank(seen, torch.eye(3, dtype=seen.dtype)[e]) for e in range(3)]
        wanted = sum(w * y for w, y in zip(weights, each, strict=True))
        wanted = wanted if case.present[place].any() else torch.zeros_like(wanted)
        torch.testing.assert_close(fused[place], wanted)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_fits(name: str) -> None:
    torch.manual_seed(0)
    fusion = MixtureFusion(4, 3, num_experts=5, hidden_dim=6, router=ROUTERS[name]()).eval()
    x, present = torch.randn(2, 9, 3, 4), torch.rand(2, 9, 3) < 0.5
    present[0, 0] = False
    categories = torch.randint(7, (2, 9)) if name == "hash" else None
    fused, weights, losses = fusion(x, present, categories)
    assert weights is None
    together = torch.where(present.unsqueeze(-1), x, 0.0).flatten(-2)
    wanted = fusion.mixture(together, present.any(-1), categories)
    assert_same(fused, wanted.output)
    assert_same(losses, wanted.losses)
    assert (fused[0, 0] == 0).all()
    assert fused.any()


def test_the_router_and_the_experts_agree_about_their_number() -> None:
    with pytest.raises(ValueError, match=r"Expected as many experts as the router's 5, got 4\."):
        MixtureFusion(4, 3, router=ROUTERS["top k"]())
