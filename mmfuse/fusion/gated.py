"""The gated multimodal unit."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["GatedFusion"]


class GatedFusion(nn.Module):
    r"""Gated multimodal unit (GMU), as introduced in :cite:`arevalo2017gmu`.

    .. math::
        \mathbf{h}_m = \tanh(\mathbf{W}_m \mathbf{x}_m), \qquad
        \mathbf{z}_m = \sigma(\mathbf{U}_m [\mathbf{x}_1; \ldots; \mathbf{x}_M]), \qquad
        \mathbf{y} = \sum_m p_m\, \mathbf{z}_m \odot \mathbf{h}_m

    where :math:`p_m` tells whether modality :math:`m` was observed. Every gate reads all
    modalities, absent ones as zeros; nothing present gives zero. As in the paper, there is no
    bias.

    .. note::
        This is the paper's form for any number of modalities. Its form for exactly two ties the
        gates, :math:`\mathbf{z}_2 = 1 - \mathbf{z}_1`.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`, each gate's mean over
          its :math:`D` entries

    Returns:
        :class:`~mmfuse.types.FusionOutput` without losses.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> fusion = GatedFusion(8, num_modalities=3)
        >>> fusion(torch.randn(2, 3, 8)).weights.shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        self.dim = dim
        self.num_modalities = num_modalities
        self.weight = nn.Parameter(
            torch.empty(num_modalities, dim, dim, device=device, dtype=dtype)
        )
        self.gate_weight = nn.Parameter(
            torch.empty(num_modalities, dim, num_modalities * dim, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier)."""
        for weight in (*self.weight, *self.gate_weight):
            nn.init.xavier_uniform_(weight)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        hidden = torch.tanh(einsum(x, self.weight, "... m d, m o d -> ... m o"))
        joint = F.linear(x.flatten(-2), rearrange(self.gate_weight, "m o d -> (m o) d"))
        gates = torch.sigmoid(joint).unflatten(-1, (self.num_modalities, self.dim))
        gates = mask_absent(gates, present)
        return FusionOutput((gates * hidden).sum(-2), gates.mean(-1), {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
