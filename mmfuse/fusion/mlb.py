"""Hadamard product of low-rank projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent, masked_product
from mmfuse.types import FusionOutput

__all__ = ["MLBFusion"]


class MLBFusion(nn.Module):
    r"""Multimodal low-rank bilinear pooling (MLB), as introduced in :cite:`kim2017mlb`.

    .. math::
        \mathbf{y} = \mathbf{P} \bigodot_{m : p_m}
        \tanh(\mathbf{U}_m \mathbf{x}_m + \mathbf{c}_m) + \mathbf{b}

    with :math:`\mathbf{U}_m \in \mathbb{R}^{F \times D}`, and where :math:`p_m` tells whether
    modality :math:`m` was observed: the product runs over what is present, so that dropping an
    absent modality equals masking it. Nothing present gives :math:`\mathbf{P} \mathbf{1} +
    \mathbf{b}`.

    .. note::
        The paper has two inputs; the product of more is the same low-rank form of a multilinear
        map.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Width :math:`F` of the product; ``None`` means :math:`D`.

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
        >>> fusion = MLBFusion(8, num_modalities=3, hidden_dim=16)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=width)
        self.dim = dim
        self.num_modalities = num_modalities
        self.factors = ModalityLinear(num_modalities, dim, width, device=device, dtype=dtype)
        self.out = nn.Linear(width, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        self.factors.reset_parameters()
        self.out.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        factors = torch.tanh(self.factors(mask_absent(x, present)))
        return FusionOutput(self.out(masked_product(factors, present)), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
