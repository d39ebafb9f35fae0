"""Tensor fusion: all products of all modalities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import FusionOutput

__all__ = ["TensorFusion"]


class TensorFusion(nn.Module):
    r"""Tensor fusion network (TFN): every product across modalities (:cite:`zadeh2017tfn`, Eq. 2).

    .. math::
        \mathbf{y} = \mathbf{W} \, \mathrm{vec}\left(
        \begin{bmatrix} \mathbf{h}_1 \\ 1 \end{bmatrix} \otimes \cdots \otimes
        \begin{bmatrix} \mathbf{h}_M \\ 1 \end{bmatrix} \right) + \mathbf{b}, \qquad
        \mathbf{h}_m = p_m \mathbf{A}_m \mathbf{x}_m

    with :math:`\mathbf{A}_m \in \mathbb{R}^{F \times D}`, and where :math:`p_m` tells whether
    modality :math:`m` was observed: with the constant 1 beside it, an absent modality leaves the
    products of the others, so that dropping it equals masking it. Nothing present gives one
    constant. The tensor has :math:`(F + 1)^M` entries a row.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Width :math:`F` that each modality is mapped to first; ``None`` takes
            :math:`\mathbf{h}_m = p_m \mathbf{x}_m` of width :math:`D`.
        max_parameters: Largest :math:`\mathbf{W}` that is made.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, :math:`\mathbf{W}` would be larger than allowed, or
            shapes disagree.

    Example:
        >>> fusion = TensorFusion(8, num_modalities=3, hidden_dim=4)
        >>> fusion.weight.shape
        torch.Size([8, 125])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int | None = None,
        max_parameters: int = 2**25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=width)
        size = dim * (width + 1) ** num_modalities
        if size > max_parameters:
            raise ValueError(
                f"Expected at most max_parameters = {max_parameters} weights, got {dim} * "
                f"({width} + 1) ** {num_modalities} = {size}. LowRankFusion is this fusion with "
                "a low-rank weight; a smaller hidden_dim helps, too."
            )
        self.dim = dim
        self.num_modalities = num_modalities
        self.project = (
            None
            if hidden_dim is None
            else ModalityLinear(
                num_modalities, dim, hidden_dim, bias=False, device=device, dtype=dtype
            )
        )
        self.weight = nn.Parameter(torch.empty(dim, size // dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier), without bias."""
        if self.project is not None:
            self.project.reset_parameters()
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        hidden = x if self.project is None else self.project(x)
        products = hidden.new_ones(*hidden.shape[:-2], 1)
        for one in F.pad(hidden, (0, 1), value=1.0).unbind(-2):
            products = (products.unsqueeze(-1) * one.unsqueeze(-2)).flatten(-2)
        return FusionOutput(F.linear(products, self.weight, self.bias), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
