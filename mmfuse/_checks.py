"""The one place where error sentences are made.

Each check names the argument and both values: what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_at_most",
    "check_below",
    "check_choice",
    "check_divides",
    "check_floating",
    "check_index",
    "check_mask",
    "check_positive",
    "check_probability",
    "check_shape",
    "check_tensors",
    "check_whole",
    "reads_values",
]


def check_tensors(**values: object) -> None:
    """Demand that every named value is a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"Expected {name} as a tensor, got {type(value).__name__}.")


def check_shape(name: str, tensor: Tensor | None, *dims: int | str, leading: bool = True) -> None:
    """Demand the last dimensions of a tensor; a letter stands for any size.

    Without ``leading`` these are all its dimensions.
    """
    if tensor is not None:
        check_tensors(**{name: tensor})
        tail = tensor.shape[max(tensor.ndim - len(dims), 0) :]
        enough = tensor.ndim >= len(dims) if leading else tensor.ndim == len(dims)
        if enough and all(
            isinstance(want, str) or want == got for want, got in zip(dims, tail, strict=True)
        ):
            return
    wanted = ", ".join(str(dim) for dim in (("...", *dims) if leading else dims))
    comma = "," if not leading and len(dims) == 1 else ""
    got = None if tensor is None else tuple(tensor.shape)
    raise ValueError(f"Expected {name} of shape ({wanted}{comma}), got {got}.")


def check_mask(name: str, mask: Tensor, shape: Iterable[int]) -> None:
    """Demand a boolean mask of exactly this shape."""
    check_tensors(**{name: mask})
    if mask.dtype != torch.bool:
        raise ValueError(f"Expected {name} of dtype torch.bool, got {mask.dtype}.")
    if mask.shape != torch.Size(shape):
        raise ValueError(f"Expected {name} of shape {tuple(shape)}, got {tuple(mask.shape)}.")


def check_positive(**values: float) -> None:
    """Demand that every named number is greater than zero."""
    for name, value in values.items():
        given: Any = value  # of whatever type
        if given is None or isinstance(given, str) or callable(given):
            raise ValueError(f"Expected {name} as a number, got {given!r}.")
        if not value > 0:
            raise ValueError(f"Expected {name} > 0, got {value}.")


def check_probability(**values: float) -> None:
    """Demand that every named number lies between zero and one."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"Expected 0 <= {name} <= 1, got {value}.")


def check_at_most(limit_name: str, limit: float, **values: float) -> None:
    """Demand that no named number is greater than another one."""
    for name, value in values.items():
        if not value <= limit:
            raise ValueError(f"Expected {name} <= {limit_name} = {limit}, got {value}.")


def check_below(limit_name: str, limit: int, **values: int) -> None:
    """Demand that every named number counts from zero to below another one."""
    for name, value in values.items():
        if not 0 <= value < limit:
            raise ValueError(f"Expected 0 <= {name} < {limit_name} = {limit}, got {value}.")


def check_divides(*, num_heads: int, dim: int) -> None:
    """Demand a width that heads can share."""
    check_positive(num_heads=num_heads)
    if dim % num_heads:
        raise ValueError(f"Expected dim divisible by num_heads = {num_heads}, got {dim}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Demand one of the listed words."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected {name} to be one of {listed}, got {value!r}.")


def check_floating(name: str, tensor: Tensor) -> None:
    """Demand real numbers of floating point."""
    if not tensor.is_floating_point():
        raise ValueError(f"Expected {name} of a floating dtype, got {tensor.dtype}.")


def check_whole(**values: int) -> None:
    """Demand that every named number is a whole one above zero."""
    for name, value in values.items():
        if isinstance(value, bool | float):
            raise ValueError(f"Expected {name} as a whole number, got {value!r}.")
    check_positive(**values)


def reads_values(x: Tensor) -> bool:
    """Whether to read values costs nothing: on the CPU, outside of compilation and vmap."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return x.device.type == "cpu"


def check_index(
    name: str, index: Tensor, limit_name: str, limit: int, *, least: int | None = None
) -> None:
    """Demand whole numbers below a limit, and none below ``least``.

    Values are read where that costs nothing.
    """
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"Expected {name} of an integer dtype, got {index.dtype}.")
    if not index.numel() or not reads_values(index):
        return
    highest = int(index.max())
    if highest >= limit:
        raise ValueError(f"Expected {name} < {limit_name} = {limit}, got {highest}.")
    if least is not None and (lowest := int(index.min())) < least:
        raise ValueError(f"Expected {name} >= {least}, got {lowest}.")
