"""What routers and their losses share: scores, choices, counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmfuse._checks import check_floating, check_mask, check_shape
from mmfuse._precision import at_least_float32, without_autocast

__all__ = ["ROUNDING", "choose", "count_choices", "linear_scores", "log_sum", "picked", "spread"]

ROUNDING = 1e-9  # before a share is rounded up: 1.1 * 50 / 11 is five, not a little more


def linear_scores(
    x: Tensor,  # (..., D)
    weight: Tensor,  # (E, D)
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # (..., E)
    """Scores of a linear router, in float32 at least, whatever autocast says; zero at padding."""
    check_shape("x", x, weight.shape[-1])
    check_floating("x", x)
    if valid is not None:
        check_mask("valid", valid, x.shape[:-1])
        x = torch.where(valid.unsqueeze(-1), x, x.new_zeros(()))
    wide = at_least_float32(x)
    with without_autocast(x.device):
        return F.linear(x.to(wide), weight.to(wide))


def choose(
    scores: Tensor,  # (..., E)
    top_k: int,
    valid: Tensor | None = None,  # (...)
) -> Tensor:  # (..., K)
    """The experts with the highest scores, best first; -1 where not valid."""
    index = _best(scores.detach(), top_k)
    return index if valid is None else index.masked_fill(~valid.unsqueeze(-1), -1)


def _best(scores: Tensor, top_k: int) -> Tensor:
    """``topk``, whose way on the CPU is three times slower than maxima for one or two of a few."""
    num_experts = scores.shape[-1]
    if top_k > 2 or not 8 <= num_experts <= 128 or scores.device.type != "cpu":
        return scores.topk(top_k, dim=-1).indices
    found = []
    for _ in range(top_k):
        found.append(scores.max(-1, keepdim=True).indices)
        scores = scores.scatter(-1, found[-1], -torch.inf)
    return torch.cat(found, dim=-1)


def picked(
    values: Tensor,  # (..., E)
    index: Tensor,  # (..., K)
) -> Tensor:  # (..., K)
    """The values of the chosen experts; any value where nobody was chosen."""
    return values.gather(-1, index.clamp_min(0))


def log_sum(
    logits: Tensor,  # (..., E)
    probs: Tensor,  # (..., E), their softmax
    index: Tensor,  # (..., K), the best first
) -> Tensor:  # (..., 1)
    """``logsumexp`` of the logits, without another pass: log p = z - logsumexp, for the best z."""
    best = index[..., :1]
    return picked(logits, best) - picked(probs, best).log()


def spread(
    values: Tensor,  # (..., K)
    index: Tensor,  # (..., K)
    num_experts: int,
) -> Tensor:  # (..., E)
    """Values side by side for every expert, zero where nobody chose it."""
    slots = index.clamp_min(-1) + 1  # nobody comes first
    wide = values.new_zeros(*values.shape[:-1], num_experts + 1)
    return wide.scatter_add(-1, slots, values)[..., 1:]


def count_choices(
    index: Tensor,  # (...)
    num_experts: int,
) -> Tensor:  # (E,)
    """How often each expert was chosen, int64; -1 counts for nobody."""
    flat = index.flatten().clamp_min(-1) + 1  # nobody comes first
    counts = flat.new_zeros(num_experts + 1)
    return counts.scatter_add(0, flat, torch.ones_like(flat))[1:]
