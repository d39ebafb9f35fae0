"""Each modality through experts that shift and turn it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_below, check_positive, check_probability, check_shape
from mmfuse._routing import linear_scores
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import FusionOutput

__all__ = ["WhiteningFusion"]

_LEAST_DEVIATION = 0.01


class WhiteningFusion(nn.Module):
    r"""Mixture of whitening experts a modality, as in UniSRec (:cite:`hou2022unisrec`).

    .. math::
        \mathbf{y} = \sum_m p_m \sum_{e=1}^{E} g_{me} \mathbf{W}_{me}
        (\operatorname{Dropout}_e(\mathbf{x}_m) - \mathbf{b}_{me}), \qquad
        \mathbf{g}_m = \operatorname{softmax}(\mathbf{U}_m \mathbf{x}_m + \boldsymbol\varepsilon
        \odot (\operatorname{softplus}(\mathbf{V}_m \mathbf{x}_m) + 0.01))

    where :math:`p_m` tells whether modality :math:`m` was observed. The noise
    :math:`\boldsymbol\varepsilon \sim \mathcal{N}(0, 1)` is drawn in training only. Dropping an
    absent modality equals masking it; nothing present gives zero. Modality ``target``, the item id
    in the paper, is added as it is.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_experts: Number :math:`E` of experts of each modality.
        target: Which modality passes as it is; ``None`` means that all go through experts.
        dropout: Dropout probability of what the experts read.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``target`` is no modality, ``dropout`` is no
            probability, or shapes disagree.

    Example:
        >>> fusion = WhiteningFusion(8, num_modalities=2, num_experts=4, target=0)
        >>> fusion(torch.randn(5, 2, 8)).fused.shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_experts: int = 8,
        target: int | None = None,
        dropout: float = 0.2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, num_experts=num_experts)
        check_below("num_modalities", num_modalities, target=target or 0)
        check_probability(dropout=dropout)
        self.dim = dim
        self.num_modalities = num_modalities
        self.target = target
        self.adaptors = nn.ModuleList(
            _Adaptor(dim, num_experts, dropout, device=device, dtype=dtype)
            for m in range(num_modalities)
            if m != target
        )

    def reset_parameters(self) -> None:
        """Draw fresh experts and gates."""
        adaptors: Any = self.adaptors
        for adaptor in adaptors:
            adaptor.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        streams = list(mask_absent(x, present).unbind(-2))
        adapted = [s for m, s in enumerate(streams) if m != self.target]
        adapted = [adaptor(s) for adaptor, s in zip(self.adaptors, adapted, strict=True)]
        if self.target is not None:
            adapted.insert(self.target, streams[self.target])
        fused = mask_absent(torch.stack(adapted, dim=-2), present).sum(-2)
        return FusionOutput(fused, None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, target={self.target}"


class _Adaptor(nn.Module):
    """Experts of one modality and their noisy gate."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.experts = ModalityLinear(num_experts, dim, dim, bias=False, device=device, dtype=dtype)
        self.shift = nn.Parameter(torch.empty(num_experts, dim, device=device, dtype=dtype))
        self.gate = nn.Linear(dim, num_experts, bias=False, device=device, dtype=dtype)
        self.noise = nn.Linear(dim, num_experts, bias=False, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.experts.reset_parameters()
        nn.init.zeros_(self.shift)
        nn.init.xavier_uniform_(self.gate.weight)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        scores = linear_scores(x, self.gate.weight)
        if self.training:
            deviation = F.softplus(linear_scores(x, self.noise.weight)) + _LEAST_DEVIATION
            scores = scores + torch.randn_like(scores) * deviation
        weights = torch.softmax(scores, dim=-1).to(x.dtype)
        rows = x.unsqueeze(-2).expand(*x.shape[:-1], *self.shift.shape)
        outputs = self.experts(self.dropout(rows) - self.shift)  # each expert drops its own
        mixed: Tensor = (weights.unsqueeze(-1) * outputs).sum(-2)
        return mixed
