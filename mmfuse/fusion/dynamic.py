"""Modalities weighed by how well each of them matches the user."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_below, check_positive, check_shape
from mmfuse._precision import at_least_float32
from mmfuse.layers import mask_absent, masked_softmax
from mmfuse.types import FusionOutput

__all__ = ["DynamicFusion"]


class DynamicFusion(nn.Module):
    r"""Dynamic fusion of a candidate's modalities, as in MISSRec (:cite:`wang2023missrec`).

    .. math::
        \mathbf{y} = \sum_m w_m \mathbf{x}_m, \qquad
        w_m = \frac{p_m \exp(\varphi \, \mathbf{u}^\top \mathbf{x}_m)}
        {\sum_j p_j \exp(\varphi \, \mathbf{u}^\top \mathbf{x}_j)}

    where :math:`p_m` tells whether modality :math:`m` was observed, :math:`\mathbf{u}` is the
    user's state, given as ``context``, and :math:`\varphi` is learned. The score of the fused
    candidate is the paper's fusion of the scores :math:`\ell_m = \mathbf{u}^\top \mathbf{x}_m`,

    .. math::
        \mathbf{u}^\top \mathbf{y} = \sum_m \ell_m \operatorname{softmax}_m(\varphi \, \ell_m)

    With a ``target``, the item id in the paper, the others are mixed so, and
    :math:`\mathbf{y} = (\mathbf{x}_t + 2 \sum_{m \neq t} w_m \mathbf{x}_m) / 3`; where only one of
    the two halves is present, it is all there is. Dropping an absent modality equals masking it.
    Nothing present gives zero.

    .. note::
        Without ``context`` a learned vector takes the user's place: ours, so that it can fuse where
        no user is known. The authors' code starts :math:`\varphi` at zero, equal weights; here it
        starts at one.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        target: Which modality counts for a third, whatever the others say; ``None`` means none.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: :math:`(\ldots, D)`, the user's state
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`, by which the modalities
          enter the sum, thirds included

    Returns:
        :class:`~mmfuse.types.FusionOutput` without losses.

    Raises:
        ValueError: If a size is not positive, ``target`` is no modality, or shapes disagree.

    Example:
        >>> fusion, x = DynamicFusion(2, num_modalities=2), torch.eye(2)
        >>> fusion(x, context=torch.tensor([9.0, 0.0])).weights.detach().round(decimals=2)
        tensor([1., 0.])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        target: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_below("num_modalities", num_modalities, target=target or 0)
        self.dim = dim
        self.num_modalities = num_modalities
        self.target = target
        self.user = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.sharpness = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a fresh stand-in for the user; the softmax starts as sharp as its scores."""
        nn.init.normal_(self.user, std=self.dim**-0.5)
        nn.init.ones_(self.sharpness)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,  # (..., D)
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        if context is not None:
            check_shape("context", context, *x.shape[:-2], self.dim, leading=False)
        user = self.user if context is None else context.unsqueeze(-2)
        wide = at_least_float32(x)
        scores = self.sharpness.to(wide) * (x.to(wide) * user.to(wide)).sum(-1)
        if self.target is None:
            weights = masked_softmax(scores, present)
        else:
            weights = _beside(scores, present, self.target)
        weights = weights.to(x.dtype)
        return FusionOutput((weights.unsqueeze(-1) * x).sum(-2), weights, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, target={self.target}"


def _beside(scores: Tensor, present: Tensor | None, target: int) -> Tensor:
    """A third for the target, two thirds for the softmax of the others; all for who is alone."""
    own = torch.arange(scores.shape[-1], device=scores.device) == target
    there = torch.ones_like(scores, dtype=torch.bool) if present is None else present
    others, itself = there & ~own, there & own
    third = torch.full((), 1 / 3, dtype=scores.dtype, device=scores.device)
    own_share = torch.where(others.any(-1, keepdim=True), third, 1)
    mixed_share = torch.where(itself.any(-1, keepdim=True), 2 * third, 1)
    return own_share * itself + mixed_share * masked_softmax(scores, others)
