"""What fusions over sequences have in common: the door, and the way out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmfuse._checks import check_at_most, check_shape
from mmfuse.layers import mask_absent, observed

__all__ = ["History", "close_history", "open_history"]


class History(NamedTuple):
    """Streams along time, the last leading dimension."""

    x: Tensor  # (..., L, M, D), zero where not observed
    seen: Tensor | None  # (..., L, M), false where absent or padding
    valid: Tensor | None  # (..., L)
    single: bool  # whether time was added, since one row came alone


def open_history(
    x: Tensor,  # (..., L, M, D) or (M, D)
    present: Tensor | None,
    valid: Tensor | None,
    *,
    num_modalities: int,
    dim: int,
    max_length: int | None = None,
) -> History:
    """Check the streams and clear what is not there; a single row is a history of one."""
    check_shape("x", x, num_modalities, dim)
    seen = observed(x, present, valid)
    single = x.ndim == 2
    if single:
        x = x.unsqueeze(0)
        seen = None if seen is None else seen.unsqueeze(0)
        valid = None if valid is None else valid.unsqueeze(0)
    if max_length is not None:
        check_at_most("max_length", max_length, L=x.shape[-3])
    return History(mask_absent(x, seen), seen, valid, single)


def close_history(fused: Tensor, history: History) -> Tensor:  # (..., L, D) -> (..., L, D) or (D)
    """Zeros at padding; no time where there was none."""
    fused = mask_absent(fused, history.valid)
    return fused.squeeze(-2) if history.single else fused
