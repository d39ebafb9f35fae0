"""The plainest fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["SumFusion"]


class SumFusion(nn.Module):
    r"""Add up what is present.

    .. math::
        \mathbf{y} = \sum_m p_m \mathbf{x}_m

    where :math:`p_m` tells whether modality :math:`m` was observed: dropping an absent modality
    equals masking it. Nothing present gives zero. It has no parameters; ``device`` and ``dtype``
    are there so that fusions can be exchanged.

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> import torch
        >>> fusion = SumFusion(2, num_modalities=2)
        >>> fusion(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).fused
        tensor([4., 6.])
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

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the sum; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        return FusionOutput(mask_absent(x, present).sum(-2), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
