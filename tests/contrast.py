"""What every contrastive loss promises about rows that do not count and about its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.strategies import with_nan

__all__ = [
    "assert_autocast_changes_nothing",
    "assert_half_precision_is_summed_in_float32",
    "assert_nan_reaches_nothing",
    "assert_zero_in_the_graph",
    "naive_reduction",
    "value_and_gradients",
]

Loss = Callable[..., Tensor]


def naive_reduction(losses: Sequence[float | None], reduction: str) -> Tensor:
    """Reduce one loss a row; ``None`` is a row that does not count."""
    kept = [loss for loss in losses if loss is not None]
    total = {
        "none": [0.0 if loss is None else loss for loss in losses],
        "sum": sum(kept),
        "mean": sum(kept) / max(len(kept), 1),
    }
    return torch.tensor(total[reduction], dtype=torch.float64)


def value_and_gradients(loss: Loss, *tensors: Tensor) -> list[Tensor]:
    """The loss, and its gradient for each tensor."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def assert_nan_reaches_nothing(loss: Loss, tensors: Sequence[Tensor], *masks: Tensor) -> None:
    """What a mask leaves out may be NaN; one mask for all tensors, or one for each."""
    given = masks if len(masks) == len(tensors) else masks * len(tensors)
    dirty = [with_nan(tensor, mask) for tensor, mask in zip(tensors, given, strict=True)]
    wanted = value_and_gradients(loss, *tensors)
    for got, want in zip(value_and_gradients(loss, *dirty), wanted, strict=True):
        assert torch.equal(got, want)


def assert_zero_in_the_graph(loss: Loss, *tensors: Tensor) -> None:
    """Nothing counts: zero, with gradients that are zero and not missing."""
    value, *gradients = value_and_gradients(loss, *tensors)
    assert (value == 0).all()
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def assert_half_precision_is_summed_in_float32(
    loss: Loss, dtype: torch.dtype, *tensors: Tensor
) -> None:
    """The numbers of float32, and gradients that are finite and in the tensor's own dtype."""
    halves = [tensor.to(dtype) for tensor in tensors]
    value, *gradients = value_and_gradients(loss, *halves)
    torch.testing.assert_close(value, loss(*(half.float() for half in halves)))
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def assert_autocast_changes_nothing(loss: Loss, *tensors: Tensor) -> None:
    """Products stay as they are under autocast."""
    wanted = loss(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*tensors), wanted)
