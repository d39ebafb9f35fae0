"""Every fusion by name, small, for tests that hold of all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mmfuse.fusion import build
from tests.outcomes import drawn

__all__ = ["OPTIONS", "made", "made_for"]

#: Options that keep the widths small, and dropout out of the numbers.
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_dim": 5},
    "tensor": {"hidden_dim": 2},
    "low_rank": {"rank": 3},
    "mlb": {"hidden_dim": 5},
    "mfb": {"factor": 2},
    "mfh": {"factor": 2},
    "tucker": {"hidden_dim": 3},
    "mutan": {"hidden_dim": 3, "rank": 2},
    "block": {"hidden_dim": 4, "blocks": 2, "rank": 2},
    "transformer": {"hidden_dim": 3},
    "mixture": {"num_experts": 2, "hidden_dim": 3},
    "bottleneck": {"num_bottlenecks": 2, "hidden_dim": 3},
    "whitening": {"num_experts": 2},
    "interactive": {"num_experts": 2},
    "frequency": {"max_length": 6},
    "mixer": {"max_length": 6, "hidden_dim": 3},
    "fdsa": {"max_length": 6, "hidden_dim": 3},
    "nova": {"max_length": 6, "hidden_dim": 3},
    "dif": {"max_length": 6, "hidden_dim": 3},
    "mult": {"hidden_dim": 3},
}


def made(name: str, dim: int, num_modalities: int, **more: Any) -> nn.Module:
    """As it is built, in evaluation."""
    return build(name, dim, num_modalities, **{**OPTIONS.get(name, {}), **more}).eval()


def made_for(name: str, x: Tensor, **more: Any) -> nn.Module:
    """Of the sizes of some streams, in float64, all parameters drawn."""
    return drawn(made(name, x.shape[-1], x.shape[-2], **more))
