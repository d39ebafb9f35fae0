"""Where half precision is not enough: routers, gates and similarities compute in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["at_least_float32", "check_no_tangent", "unit", "without_autocast"]

_NOTHING = 1e-30  # the reciprocal, times what a loss makes of it, is still a float32


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """The common dtype of the tensors, float32 if that is wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Keep products out of autocast, which would round them to 8 or 11 bits.

    A device without numbers has no autocast; to ask which have one breaks the graph of torch 2.11.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_no_tangent(what: str, *tensors: Tensor) -> None:
    """Refuse forward-mode derivatives, which a registered operator would leave out in silence."""
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{what} has no forward-mode derivative; take a gradient.")


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays zero, with the gradient of one of length 1.

    The largest entry goes first, so that no square of an entry is too large or too small a number.
    It is a constant to the gradient: a direction does not depend on the length. Below 1e-30 an
    entry counts as zero.
    """
    if not x.shape[-1]:
        return x
    largest = x.detach().abs().amax(-1, keepdim=True)
    nothing = largest < _NOTHING
    x = x / largest.masked_fill(nothing, 1)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(nothing, torch.ones_like(length), length)
