"""Any gate, made a fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput, Gate

__all__ = ["WeightedFusion"]


class WeightedFusion(nn.Module):
    r"""Weighted sum of the modalities, by any gate.

    .. math::
        \mathbf{y} = \sum_m w_m \mathbf{x}_m, \qquad
        \mathbf{w} = \mathrm{gate}(\mathbf{x}, \mathbf{p}, \mathbf{c})

    An absent modality has weight zero in every gate of :mod:`mmfuse.gating`; nothing present
    gives zero.

    Args:
        gate: A gate, such as :class:`~mmfuse.gating.SoftmaxGate` or
            :class:`~mmfuse.gating.CategoryGuidedGate`.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: what the gate takes
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` with the gate's weights and losses.

    Raises:
        ValueError: What the gate raises.

    Example:
        >>> from mmfuse.gating import SoftmaxGate
        >>> fusion = WeightedFusion(SoftmaxGate(8))
        >>> fusion(torch.randn(2, 3, 8)).fused.shape
        torch.Size([2, 8])
    """

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the weighted sum; shapes are given in the class docstring."""
        weights, losses = self.gate(x, present, context)
        fused = torch.einsum("...m,...md->...d", weights, mask_absent(x, present))
        return FusionOutput(fused, weights, losses)
