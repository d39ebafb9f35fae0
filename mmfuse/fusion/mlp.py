"""Concatenation and a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_probability, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["MLPFusion"]


class MLPFusion(nn.Module):
    r"""Concatenate the modalities and map them to one vector by two layers.

    .. math::
        \mathbf{y} = \mathbf{W}_2 \, \mathrm{GELU}\bigl(
        \mathbf{W}_1 [p_1 \mathbf{x}_1; \ldots; p_M \mathbf{x}_M] + \mathbf{b}_1 \bigr)
        + \mathbf{b}_2

    where :math:`p_m` tells whether modality :math:`m` was observed: an absent modality is zero in
    the concatenation, which equals leaving out its block of :math:`\mathbf{W}_1`. Nothing present
    gives the constant that the biases make.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Hidden width :math:`F`; ``None`` means :math:`M D`.
        dropout: Dropout probability of the hidden layer.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``dropout`` is no probability, or shapes disagree.

    Example:
        >>> fusion = MLPFusion(8, num_modalities=3, hidden_dim=16)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = num_modalities * dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim)
        check_probability(dropout=dropout)
        self.dim = dim
        self.num_modalities = num_modalities
        self.hidden = nn.Linear(num_modalities * dim, hidden_dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        hidden = F.gelu(self.hidden(mask_absent(x, present).flatten(-2)))
        return FusionOutput(self.out(self.dropout(hidden)), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
