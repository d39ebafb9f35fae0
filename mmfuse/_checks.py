"""The one place where error sentences are made.

Each check names the argument and both values: what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = [
    "check_at_most",
    "check_choice",
    "check_mask",
    "check_positive",
    "check_probability",
    "check_shape",
]


def check_shape(name: str, tensor: Tensor, *dims: int | str, leading: bool = True) -> None:
    """Demand the last dimensions of a tensor; a letter stands for any size.

    Without ``leading`` these are all its dimensions.
    """
    tail = tensor.shape[max(tensor.ndim - len(dims), 0) :]
    enough = tensor.ndim >= len(dims) if leading else tensor.ndim == len(dims)
    fits = enough and all(
        isinstance(want, str) or want == got for want, got in zip(dims, tail, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(dim) for dim in (("...", *dims) if leading else dims))
        comma = "," if not leading and len(dims) == 1 else ""
        raise ValueError(f"Expected {name} of shape ({wanted}{comma}), got {tuple(tensor.shape)}.")


def check_mask(name: str, mask: Tensor, shape: Iterable[int]) -> None:
    """Demand a boolean mask of exactly this shape."""
    if mask.dtype != torch.bool:
        raise ValueError(f"Expected {name} of dtype torch.bool, got {mask.dtype}.")
    if mask.shape != torch.Size(shape):
        raise ValueError(f"Expected {name} of shape {tuple(shape)}, got {tuple(mask.shape)}.")


def check_positive(**values: float) -> None:
    """Demand that every named number is greater than zero."""
    for name, value in values.items():
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
        if value > limit:
            raise ValueError(f"Expected {name} <= {limit_name} = {limit}, got {value}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Demand one of the listed words."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected {name} to be one of {listed}, got {value!r}.")
