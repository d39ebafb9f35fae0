"""Low-rank tensor fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent, masked_product
from mmfuse.types import FusionOutput

__all__ = ["LowRankFusion"]


class LowRankFusion(nn.Module):
    r"""Low-rank multimodal fusion (LMF): tensor fusion, factorised (:cite:`liu2018lmf`, Eq. 6-7).

    .. math::
        \mathbf{y} = \sum_{r=1}^{R} a_r \bigodot_{m=1}^{M}
        \left( \mathbf{W}_{m,r} \begin{bmatrix} p_m \mathbf{x}_m \\ 1 \end{bmatrix} \right)
        + \mathbf{b}

    which is :class:`TensorFusion` whose weight is the sum of :math:`R` outer products, without the
    tensor: :math:`M R (D + 1) D` parameters instead of :math:`(D + 1)^M D`. :math:`p_m` tells
    whether modality :math:`m` was observed: of an absent one, the last column of
    :math:`\mathbf{W}_{m,r}` is left, a constant. Nothing present gives one constant.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        rank: Number :math:`R` of terms.

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
        >>> fusion = LowRankFusion(8, num_modalities=3, rank=4)
        >>> sum(parameter.numel() for parameter in fusion.parameters())  # 3 * 4 * 9 * 8 + 4 + 8
        876
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        rank: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, rank=rank)
        self.dim = dim
        self.num_modalities = num_modalities
        self.rank = rank
        self.factors = ModalityLinear(num_modalities, dim, rank * dim, device=device, dtype=dtype)
        self.rank_weight = nn.Parameter(torch.empty(rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh factors (Xavier, constants of one), the mean over the ranks, no bias."""
        self.factors.reset_parameters()
        if self.factors.bias is not None:
            nn.init.ones_(self.factors.bias)
        nn.init.constant_(self.rank_weight, 1 / self.rank)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        products = masked_product(self.factors(mask_absent(x, present)))
        terms = products.unflatten(-1, (self.rank, self.dim))
        fused = torch.einsum("...rd,r->...d", terms, self.rank_weight)
        return FusionOutput(fused + self.bias, None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, rank={self.rank}"
