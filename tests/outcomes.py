"""What a block does, in a form that two runs can be compared by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mmfuse.types import Streams

__all__ = ["assert_each_row", "assert_same", "drawn", "outcome", "places", "static_shapes"]

Block = TypeVar("Block", bound=nn.Module)


def places(shape: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Every index of a tensor of this shape."""
    return itertools.product(*map(range, shape))


def drawn(block: Block) -> Block:
    """The block in float64 with every parameter drawn at random, those that start at zero too."""
    for parameter in block.double().parameters():
        nn.init.normal_(parameter)
    return block


def outcome(
    block: Callable[..., Any], x: Tensor, *others: Any, **keywords: Any
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """All outputs, and the gradients of a random sum of them: what a mask may not let through."""
    x = x.detach().clone().requires_grad_()
    outputs = [
        leaf for leaf in pytree.tree_leaves(block(x, *others, **keywords)) if leaf is not None
    ]
    generator = torch.Generator().manual_seed(1)
    draws = (torch.randn(output.shape, generator=generator) for output in outputs)
    total = torch.stack([(a * b).sum() for a, b in zip(outputs, draws, strict=True)]).sum()
    parameters = block.parameters() if isinstance(block, nn.Module) else ()
    return outputs, torch.autograd.grad(total, [x, *parameters], materialize_grads=True)


def assert_each_row(
    fusion: Callable[..., Any],
    case: Streams,
    naive: Callable[[list[list[float]], list[bool]], list[float]],
) -> None:
    """Each fused vector is what a formula, read aloud, says of its row."""
    fused = fusion(case.x, case.present).fused
    for place in places(case.present.shape[:-1]):
        wanted = naive(case.x[place].tolist(), case.present[place].tolist())
        torch.testing.assert_close(fused[place], torch.tensor(wanted, dtype=fused.dtype))


def assert_same(got: Any, wanted: Any) -> None:
    """Every bit alike."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@contextmanager
def static_shapes() -> Iterator[None]:
    """Run eagerly what ``torch.compile`` would see."""
    with mock.patch("torch.compiler._is_compiling_flag", True):
        yield
