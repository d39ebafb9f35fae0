"""Tests for mmfuse.fusion.mutan."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from mmfuse.fusion import BLOCKFusion, MUTANFusion, TuckerFusion
from mmfuse.types import Streams
from tests.outcomes import assert_each_row, drawn
from tests.references import naive_linear
from tests.strategies import streams

few = settings(max_examples=25)


def product(first: list[float], second: list[float]) -> list[float]:
    return [a * b for a, b in zip(first, second, strict=True)]


def summed(first: list[float], second: list[float]) -> list[float]:
    return [a + b for a, b in zip(first, second, strict=True)]


@few
@given(case=streams())
def test_mutan_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(MUTANFusion(dim, num_modalities, hidden_dim=2, rank=3))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        inner = [0.0] * 2
        for r in range(3):
            term = [1.0] * 2
            for m, vector in enumerate(x):
                projected = naive_linear(fusion.project.weight[m].tolist(), vector)
                hidden = [math.tanh(h) for h in projected] if present[m] else [1.0] * 2
                rows = fusion.factors.weight[m, 2 * r : 2 * r + 2].tolist()
                term = product(term, naive_linear(rows, hidden))
            inner = summed(inner, term)
        return summed(naive_linear(fusion.out.weight.tolist(), inner), fusion.out.bias.tolist())

    assert_each_row(fusion, case, naive)


@few
@given(case=streams())
def test_block_matches_naive(case: Streams) -> None:
    *_, num_modalities, dim = case.x.shape
    fusion = drawn(BLOCKFusion(dim, num_modalities, hidden_dim=4, blocks=2, rank=3))

    def naive(x: list[list[float]], present: list[bool]) -> list[float]:
        together: list[float] = []
        for n in range(2):
            inner = [0.0] * 2
            for r in range(3):
                term = [1.0] * 2
                for m, vector in enumerate(x):
                    hidden = naive_linear(fusion.project.weight[m].tolist(), vector)
                    part = hidden[2 * n : 2 * n + 2] if present[m] else [1.0] * 2
                    rows = fusion.factors[m, n, :, 2 * r : 2 * r + 2].T.tolist()
                    term = product(term, naive_linear(rows, part))
                inner = summed(inner, term)
            together += inner
        return summed(naive_linear(fusion.out.weight.tolist(), together), fusion.out.bias.tolist())

    assert_each_row(fusion, case, naive)


def low_rank_core(factors: list[Tensor]) -> Tensor:
    """The sum over the ranks of outer products; each factor (R, O, I)."""
    core = torch.ones_like(factors[0][..., :1]).squeeze(-1)  # (R, O)
    for factor in factors:
        core = torch.einsum("ro...,roi->ro...i", core, factor)
    return core.sum(0).movedim(0, -1)  # (I, ..., I, O)


def test_mutan_is_tucker_with_the_core_that_its_factors_make() -> None:
    fusion, tucker = (
        drawn(MUTANFusion(3, 3, hidden_dim=2)),
        TuckerFusion(3, 3, hidden_dim=2).double(),
    )
    factors = fusion.factors.weight.detach().unflatten(1, (fusion.rank, 2))  # (M, R, O, I)
    tucker.core.data = low_rank_core(list(factors))
    tucker.out.load_state_dict(fusion.out.state_dict())
    # The tanh stands between: Tucker gets what comes out of it, through projections that pass it.
    x = torch.randn(4, 3, 3, dtype=torch.float64)
    hidden = torch.tanh(fusion.project(x))
    tucker.project.weight.data = torch.eye(2, 3, dtype=torch.float64).expand(3, 2, 3).clone()
    padded = torch.nn.functional.pad(hidden, (0, 1))
    present = torch.rand(4, 3) < 0.6
    torch.testing.assert_close(fusion(x, present).fused, tucker(padded, present).fused)


def test_block_is_tucker_with_blocks_on_the_diagonal_of_its_core() -> None:
    fusion = drawn(BLOCKFusion(3, 3, hidden_dim=4, blocks=2))
    tucker = TuckerFusion(3, 3, hidden_dim=4).double()
    core = torch.zeros(4, 4, 4, 4, dtype=torch.float64)
    for n, part in enumerate((slice(0, 2), slice(2, 4))):
        factors = fusion.factors.detach()[:, n].mT.unflatten(1, (fusion.rank, 2))
        core[part, part, part, part] = low_rank_core(list(factors))
    tucker.core.data = core
    tucker.project.load_state_dict(fusion.project.state_dict())
    tucker.out.load_state_dict(fusion.out.state_dict())
    x, present = torch.randn(4, 3, 3, dtype=torch.float64), torch.rand(4, 3) < 0.6
    torch.testing.assert_close(fusion(x, present).fused, tucker(x, present).fused)


def test_rejects_bad_options() -> None:
    with pytest.raises(ValueError, match=r"hidden_dim divisible by blocks = 3, got 64\."):
        BLOCKFusion(4, 2, blocks=3)
    with pytest.raises(ValueError, match=r"Expected rank > 0, got 0\."):
        MUTANFusion(4, 2, rank=0)
