"""Tests for mmfuse.testing: every clause notices the fault that it is there for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmfuse.testing import assert_block_contract
from mmfuse.types import FusionOutput, Streams


class Good(nn.Module):
    """A block without fault; each of the others below has exactly one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("count", torch.zeros(()))
        self.sizes = (4, 4)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.linear.reset_parameters()
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Any:
        return self.scale * self.linear(x)


# -- good blocks -----------------------------------------------------------------------------------


class Masked(Good):
    """Takes all that a block may take, and returns all that it may return."""

    def forward(self, streams: Streams, context: Any = None, **masks: Any) -> FusionOutput:
        x = torch.where(streams.present.unsqueeze(-1), streams.x, 0.0)
        x = nn.functional.dropout(super().forward(x), 0.5, self.training)
        loss = {"loss": x[masks["rows"][0]].mean()}
        return FusionOutput(x.sum(-2), None if context is None else context(x), loss)


def test_passes_a_good_block() -> None:
    assert_block_contract(Good(), torch.randn(3, 4))


def test_passes_tuples_nothing_functions_and_random_draws() -> None:
    streams = Streams(torch.full((3, 2, 4), torch.nan), torch.zeros(3, 2) > 0)
    streams.x[1], streams.present[1] = torch.randn(2, 4), True
    rows = {"rows": [torch.tensor([0, 1])]}
    assert_block_contract(Masked(), streams, None, keywords=rows)
    assert_block_contract(Masked().eval(), streams, torch.sin, keywords=rows)


def test_passes_an_unused_parameter_that_is_named() -> None:
    assert_block_contract(Unused(), torch.randn(3, 4), unused=["spare"])


def test_passes_a_frozen_parameter() -> None:
    block = Good()
    block.scale.requires_grad_(False)
    assert_block_contract(block, torch.randn(3, 4))


def test_leaves_everything_as_it_was() -> None:
    block, x = Good(), torch.randn(3, 4)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    inputs, draws = x.clone(), torch.random.get_rng_state()
    assert_block_contract(block, x)
    torch.testing.assert_close(dict(block.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(x, inputs)
    assert torch.equal(draws, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in block.parameters())


# -- registered ------------------------------------------------------------------------------------


class ParametersInAList(Good):
    def __init__(self) -> None:
        super().__init__()
        self.factors = [nn.Parameter(torch.ones(4))]


class ModulesInAList(Good):
    def __init__(self) -> None:
        super().__init__()
        self.experts = [nn.Linear(4, 4)]


class TensorInADict(Good):
    def __init__(self) -> None:
        super().__init__()
        self.tables = {"position": {"first": torch.ones(4)}}


class PlainTensorInside(Good):
    def __init__(self) -> None:
        super().__init__()
        self.linear.mask = torch.ones(4)


class ParameterWithoutDimension(Good):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.slope * super().forward(x)


# -- pure ------------------------------------------------------------------------------------------


class StoresItsInput(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        return super().forward(x)


class Counts(Good):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class ChangesItsChild(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.linear.seen = len(x)
        return super().forward(x)


class ChangesABuffer(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class ClampsAParameter(Good):
    def forward(self, x: Tensor) -> Tensor:
        self.scale.data.clamp_(max=0.5)
        return super().forward(x)


class ChangesItsInput(Good):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return super().forward(x)


# -- typed -----------------------------------------------------------------------------------------


class ReturnsANumber(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), {"loss": 0.0}


# -- trained ---------------------------------------------------------------------------------------


class Unused(Good):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(4))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "spare"):
            nn.init.ones_(self.spare)


class TimesZero(Good):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 0 * self.scale


class InfiniteSlope(Good):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (self.scale - self.scale.detach()).sqrt()


# -- restored --------------------------------------------------------------------------------------


class ForgetsAParameter(Good):
    def reset_parameters(self) -> None:
        self.linear.reset_parameters()


class ForgetsAChild(Good):
    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)


class NotInTheCheckpoint(Good):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "shift"):
            nn.init.ones_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


# -- compiled --------------------------------------------------------------------------------------


class BranchesOnData(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class BreaksTheGraph(Good):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)


class DiffersWhenCompiled(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 1e-3 if torch.compiler.is_compiling() else x)


# -- portable --------------------------------------------------------------------------------------


class NamesADevice(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(4, device="cpu")


class ReturnsFromADevice(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), torch.ones(4)


# -- float64 ---------------------------------------------------------------------------------------


class AddsFloat32(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class MultipliesFloat32(Good):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.eye(4, dtype=torch.float32, device=x.device)


@pytest.mark.parametrize(
    ("faulty", "complaint"),
    [
        (ParametersInAList, r"registered: a Parameter hides in factors"),
        (ModulesInAList, r"registered: a Linear hides in experts"),
        (TensorInADict, r"registered: a Tensor hides in tables"),
        (PlainTensorInside, r"registered: a Tensor hides in linear\.mask"),
        (ParameterWithoutDimension, r"registered: slope has no dimension to be sharded along"),
        (StoresItsInput, r"pure: forward changed an attribute of the block"),
        (Counts, r"pure: forward changed an attribute of the block"),
        (ChangesItsChild, r"pure: forward changed an attribute of linear"),
        (ChangesABuffer, r"pure: forward changed count"),
        (ClampsAParameter, r"pure: forward changed scale"),
        (ChangesItsInput, r"pure: forward changed an input"),
        (ReturnsANumber, r"typed: output holds a <class 'float'>"),
        (Unused, r"trained: spare gets no gradient"),
        (TimesZero, r"trained: gradient of scale is zero"),
        (InfiniteSlope, r"trained: gradient of scale is not finite"),
        (ForgetsAParameter, r"restored: reset_parameters leaves scale"),
        (ForgetsAChild, r"restored: reset_parameters leaves linear\.weight"),
        (NotInTheCheckpoint, r"restored: the outputs are not the same"),
        (BranchesOnData, r"compiled: .*[Dd]ata-dependent"),
        (BreaksTheGraph, r"compiled: .*graph_break"),
        (DiffersWhenCompiled, r"compiled: not the eager numbers"),
        (NamesADevice, r"portable: .*cpu"),
        (ReturnsFromADevice, r"portable: an output is on cpu instead of meta"),
        (AddsFloat32, r"float64: an output is torch\.float32"),
        (MultipliesFloat32, r"float64: .*dtype"),
    ],
)
def test_names_the_clause_that_is_broken(faulty: type[Good], complaint: str) -> None:
    with pytest.raises(AssertionError, match=f"^{complaint}"):
        assert_block_contract(faulty(), torch.randn(3, 4))
