"""Every fusion in every cell: modalities, leading dimensions, dtype, and way of running.

A cell is one of each. One test does a column of cells; ``tests/cells.py`` prints their count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mmfuse.fusion import available, build
from tests.fusions import OPTIONS, made

COUNTS = (1, 2, 3, 5)
LEADS = {"(B,)": (3,), "(B, L)": (2, 3), "()": ()}
#: How near a cell has to be to the same numbers in float64, and to the same in another way.
DTYPES = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1e-1, 2e-2), torch.float64: (1e-10, 1e-10)}
DIM = 4

every_fusion = pytest.mark.parametrize("name", available())
every_count = pytest.mark.parametrize("count", COUNTS)


class Inputs(NamedTuple):
    x: Tensor
    present: Tensor


Everything = dict[tuple[str, torch.dtype], Inputs]


def inputs(count: int, seed: int) -> Everything:
    """One input for each leading shape and dtype, with something absent wherever it can be."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for lead, shape in LEADS.items():
        x = torch.randn(*shape, count, DIM, generator=generator, dtype=torch.float64)
        present = torch.rand(*shape, count, generator=generator) < 0.7
        for dtype in DTYPES:
            made[lead, dtype] = Inputs(x.to(dtype), present)
    return made


def kind(dtype: torch.dtype) -> str:
    return str(dtype).replace("torch.", "in ")


class Copies(nn.Module):
    """A fusion in each dtype; it is compiled and exported at once for all leading shapes."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.of = nn.ModuleDict({kind(dtype): copy.deepcopy(fusion).to(dtype) for dtype in DTYPES})

    def forward(self, *pairs: Inputs) -> list[Tensor]:
        return [self.of[kind(x.dtype)](x, present).fused for x, present in pairs]


def copies(name: str, count: int) -> Copies:
    torch.manual_seed(count)
    return Copies(made(name, DIM, count).double())


def one_by_one(fusion: Callable[..., Any], name: str, given: Inputs) -> Tensor:
    """By other leading dimensions: each row, or each history, alone; what is alone, in a batch."""
    x, present = given
    single = 2 if name in available("rows") else 3
    if x.ndim > single:
        pairs = zip(x.flatten(0, -single - 1), present.flatten(0, -single), strict=True)
        rows = torch.stack([fusion(*pair).fused for pair in pairs])
        return rows.reshape(*x.shape[:-2], x.shape[-1])
    ones = (2, *[1] * (single - x.ndim))
    batch: Tensor = fusion(x.expand(*ones, *x.shape), present.expand(*ones, *present.shape)).fused
    return batch[1].reshape(*x.shape[:-2], x.shape[-1])


def near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=tolerance)


def cells(given: Everything, *outputs: list[Tensor]) -> Iterator[tuple[str, torch.dtype, Any]]:
    for (lead, dtype), *read in zip(given, *outputs, strict=True):
        yield lead, dtype, read


@every_fusion
@every_count
def test_eager(name: str, count: int, passed: Callable[..., None]) -> None:
    """Near the rows one by one in float64, in the dtype of the input."""
    block, given = copies(name, count), inputs(count, seed=1)
    exact = block.of[kind(torch.float64)]
    for lead, dtype, (got,) in cells(given, block(*given.values())):
        wanted = one_by_one(exact, name, given[lead, torch.float64])
        assert got.dtype == dtype
        near(got, wanted, DTYPES[dtype][0])
        passed(name, count, "eager", lead, dtype)


@every_fusion
@every_count
def test_compiled(name: str, count: int, passed: Callable[..., None]) -> None:
    """One graph without a break, and the eager numbers."""
    block, given = copies(name, count), inputs(count, seed=2)
    torch.compiler.reset()
    graph = torch.compile(block, fullgraph=True, backend="eager")
    outputs = graph(*given.values()), block(*given.values())
    for lead, dtype, (got, wanted) in cells(given, *outputs):
        assert got.dtype == dtype
        near(got, wanted, DTYPES[dtype][1])
        passed(name, count, "compile", lead, dtype)


@every_fusion
@every_count
def test_exported(name: str, count: int, passed: Callable[..., None]) -> None:
    """The eager numbers for other inputs than those it was exported with."""
    block, given = copies(name, count), inputs(count, seed=3)
    program = torch.export.export(block, tuple(inputs(count, seed=4).values())).module()
    outputs = program(*given.values()), block(*given.values())
    for lead, dtype, (got, wanted) in cells(given, *outputs):
        assert got.dtype == dtype
        near(got, wanted, DTYPES[dtype][1])
        passed(name, count, "export", lead, dtype)


@every_fusion
@every_count
def test_saved_and_loaded(name: str, count: int, passed: Callable[..., None]) -> None:
    """Another one of other numbers gives the same ones once it has the weights, bit by bit."""
    block, given = copies(name, count), inputs(count, seed=5)
    torch.manual_seed(-1)
    other = Copies(build(name, DIM, count, **OPTIONS.get(name, {})).double()).eval()
    other.load_state_dict(load(save(block.state_dict())))
    outputs = other(*given.values()), block(*given.values())
    for lead, dtype, (got, wanted) in cells(given, *outputs):
        assert torch.equal(got, wanted)
        passed(name, count, "state dict", lead, dtype)
