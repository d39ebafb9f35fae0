"""Cross entropy of the next item, over the whole catalogue or an estimate of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cammsr.blend import Blend, paired_scores, scores_of
from cammsr.negatives import Negatives

__all__ = ["chunked_cross_entropy", "full_cross_entropy", "sampled_cross_entropy"]

CHUNK = 2**23  # scores that exist at a time


def full_cross_entropy(
    states: Tensor,  # (T, D)
    candidates: Tensor,  # (V, W)
    targets: Tensor,  # (T,)
    *,
    blend: Blend | None = None,
    added: Tensor | None = None,  # (T, V), to the scores
    label_smoothing: float = 0.0,
) -> Tensor:  # ()
    """The mean over the states of minus the log of the target's softmax."""
    scores = scores_of(states, candidates, blend)
    if added is not None:
        scores = scores + added
    return F.cross_entropy(scores, targets, label_smoothing=label_smoothing)


def chunked_cross_entropy(
    states: Tensor,  # (T, D)
    candidates: Tensor,  # (V, W)
    targets: Tensor,  # (T,)
    *,
    blend: Blend | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:  # ()
    """The same, but of the matrix of scores only some rows exist at a time.

    The gradient is made along with the value, as in torch's ``linear_cross_entropy``, which
    smooths no labels in chunks; differentiable once. Scores that are no products are made twice.
    """
    rows = max(1, CHUNK // len(candidates))
    if blend is None:
        chunked: Any = _Chunked.apply
        total: Tensor = chunked(states, candidates, targets, (label_smoothing, rows))
    else:
        total = states.sum() * 0
        for some, goals in zip(states.split(rows), targets.split(rows), strict=True):
            total = total + checkpoint(
                _summed, some, candidates, goals, blend, label_smoothing, use_reentrant=False
            )
    return total / max(len(states), 1)


def sampled_cross_entropy(
    states: Tensor,  # (T, D)
    candidates: Tensor,  # (V, W), of which those of targets and negatives are read
    targets: Tensor,  # (T,)
    negatives: Negatives,  # N of them
    *,
    blend: Blend | None = None,
) -> Tensor:  # ()
    r"""The full cross entropy, whose sum over the catalogue is estimated from negatives.

    .. math::
        \ell = \log \Bigl( e^{s_t} + \sum_{j \in \mathcal{N} \setminus \{t\}}
        e^{s_j - \log \pi_j} \Bigr) - s_t

    The logQ correction (Yi et al., 2019): with the probability :math:`\pi_j` that j is among the
    negatives, the sum has the right mean. The target is always there and not corrected; where it
    is among the negatives too, it is left out of these.
    """
    scores = scores_of(states, candidates[negatives.items], blend)
    scores = scores - negatives.log_inclusion.to(scores.dtype)
    scores = scores.masked_fill(targets.unsqueeze(1) == negatives.items, -torch.inf)
    right = paired_scores(states, candidates[targets], blend).unsqueeze(1)
    return F.cross_entropy(torch.cat([right, scores], dim=1), torch.zeros_like(targets))


def _summed(
    states: Tensor, candidates: Tensor, targets: Tensor, blend: Blend, label_smoothing: float
) -> Tensor:
    scores = scores_of(states, candidates, blend)
    return F.cross_entropy(scores, targets, label_smoothing=label_smoothing, reduction="sum")


class _Chunked(torch.autograd.Function):
    """The sum of the losses of some rows after the other, each leaving its gradient behind."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        candidates: Tensor,
        targets: Tensor,
        options: tuple[float, int],
    ) -> Tensor:
        smoothing, rows = options
        of_states, of_candidates = torch.zeros_like(states), torch.zeros_like(candidates)
        total = states.new_zeros(())
        for start in range(0, len(states), rows):
            some, goals = states[start : start + rows], targets[start : start + rows]
            scores = some @ candidates.T  # (rows, V)
            right = scores.gather(1, goals.unsqueeze(1)).squeeze(1)
            truth = (1 - smoothing) * right
            if smoothing:
                truth = truth + smoothing * scores.mean(1)
            normaliser = scores.logsumexp(1)
            total += (normaliser - truth).sum()
            slope = scores.sub_(normaliser.unsqueeze(1)).exp_()  # the softmax, minus the truth
            if smoothing:
                slope -= smoothing / len(candidates)
            slope[torch.arange(len(goals), device=goals.device), goals] -= 1 - smoothing
            of_states[start : start + rows] = slope @ candidates
            of_candidates.addmm_(slope.T, some)
        ctx.save_for_backward(of_states, of_candidates)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_candidates = ctx.saved_tensors
        return gradients[0] * of_states, gradients[0] * of_candidates, None, None
