"""Concatenation and one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["ConcatFusion"]


class ConcatFusion(nn.Module):
    r"""Concatenate the modalities and map them to one vector.

    .. math::
        \mathbf{y} = \mathbf{W} [p_1 \mathbf{x}_1; \ldots; p_M \mathbf{x}_M] + \mathbf{b}
        = \sum_m p_m \mathbf{W}_m \mathbf{x}_m + \mathbf{b}

    where :math:`p_m` tells whether modality :math:`m` was observed: an absent modality is zero in
    the concatenation, which equals leaving out its block of :math:`\mathbf{W}`. Nothing present
    gives the bias.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        bias: Whether to add :math:`\mathbf{b}`.

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
        >>> fusion = ConcatFusion(8, num_modalities=3)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        self.dim = dim
        self.num_modalities = num_modalities
        self.linear = nn.Linear(num_modalities * dim, dim, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        self.linear.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        return FusionOutput(self.linear(mask_absent(x, present).flatten(-2)), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
