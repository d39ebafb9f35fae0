"""Where half precision is not enough: routers, gates and similarities compute in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["at_least_float32", "unit", "without_autocast"]


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """The common dtype of the tensors, float32 if that is wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Keep products out of autocast, which would round them to 8 or 11 bits."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays zero, with the gradient of one of length 1."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length < 1e-12, torch.ones_like(length), length)
