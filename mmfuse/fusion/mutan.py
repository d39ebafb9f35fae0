"""Tucker fusion with low-rank and block-diagonal cores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent, masked_product
from mmfuse.types import FusionOutput

__all__ = ["BLOCKFusion", "MUTANFusion"]


class MUTANFusion(nn.Module):
    r"""Tucker fusion whose core has low rank (MUTAN), as introduced in :cite:`benyounes2017mutan`.

    .. math::
        \mathbf{y} = \mathbf{W} \sum_{r=1}^{R} \bigodot_m \mathbf{N}_{m,r} \mathbf{h}_m
        + \mathbf{b}, \qquad
        \mathbf{h}_m = \begin{cases} \tanh(\mathbf{A}_m \mathbf{x}_m) & \text{present} \\
        \mathbf{1} & \text{absent} \end{cases}

    which is :class:`TuckerFusion` with the core :math:`T_{i_1 \ldots i_M o} = \sum_r \prod_m
    (\mathbf{N}_{m,r})_{o i_m}` behind a tanh. Nothing present gives one constant.

    .. note::
        The paper has two inputs; the product of more is the same constraint on a larger core.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Width :math:`F` of the :math:`\mathbf{h}_m` and of the sum.
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
        >>> fusion = MUTANFusion(8, num_modalities=3, hidden_dim=16, rank=5)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int = 64,
        rank: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim, rank=rank)
        self.dim = dim
        self.num_modalities = num_modalities
        self.hidden_dim = hidden_dim
        self.rank = rank
        self.project = ModalityLinear(
            num_modalities, dim, hidden_dim, bias=False, device=device, dtype=dtype
        )
        self.factors = ModalityLinear(
            num_modalities, hidden_dim, rank * hidden_dim, bias=False, device=device, dtype=dtype
        )
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        for part in (self.project, self.factors, self.out):
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        hidden = torch.tanh(self.project(mask_absent(x, present)))
        hidden = mask_absent(hidden, present, fill=1.0)
        terms = masked_product(self.factors(hidden)).unflatten(-1, (self.rank, self.hidden_dim))
        return FusionOutput(self.out(terms.sum(-2)), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, hidden_dim={self.hidden_dim}, "
            f"rank={self.rank}"
        )


class BLOCKFusion(nn.Module):
    r"""Tucker fusion whose core is block-diagonal (BLOCK, :cite:`benyounes2019block`, Eq. 3-6).

    .. math::
        \mathbf{y} = \mathbf{W} \left[ \mathbf{z}_1; \ldots; \mathbf{z}_N \right] + \mathbf{b},
        \qquad \mathbf{z}_n = \sum_{r=1}^{R} \bigodot_m \mathbf{N}_{m,n,r} \mathbf{h}_{m,n},
        \qquad
        \mathbf{h}_m = \begin{cases} \mathbf{A}_m \mathbf{x}_m & \text{present} \\
        \mathbf{1} & \text{absent} \end{cases}

    where :math:`\mathbf{h}_{m,n}` is the n-th of :math:`N` equal parts of :math:`\mathbf{h}_m`:
    every part of one modality meets the same part of the others. This is :class:`TuckerFusion`
    with :math:`N` blocks of rank :math:`R` on the diagonal of its core. Nothing present gives one
    constant.

    .. note::
        The paper has two inputs. The released code takes a signed root and unit length of each
        part, which the paper's equations do not have; neither has this block.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Width :math:`F` of the :math:`\mathbf{h}_m` and of the concatenation.
        blocks: Number :math:`N` of parts.
        rank: Number :math:`R` of terms of a block.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``blocks`` does not divide ``hidden_dim``, or shapes
            disagree.

    Example:
        >>> fusion = BLOCKFusion(8, num_modalities=3, hidden_dim=16, blocks=4)
        >>> fusion.factors.shape
        torch.Size([3, 4, 4, 20])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int = 64,
        blocks: int = 4,
        rank: int = 5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim)
        check_positive(blocks=blocks, rank=rank)
        if hidden_dim % blocks:
            raise ValueError(
                f"Expected hidden_dim divisible by blocks = {blocks}, got {hidden_dim}."
            )
        self.dim = dim
        self.num_modalities = num_modalities
        self.hidden_dim = hidden_dim
        self.blocks = blocks
        self.rank = rank
        part = hidden_dim // blocks
        self.project = ModalityLinear(
            num_modalities, dim, hidden_dim, bias=False, device=device, dtype=dtype
        )
        self.factors = nn.Parameter(
            torch.empty(num_modalities, blocks, part, rank * part, device=device, dtype=dtype)
        )
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        self.project.reset_parameters()
        for factor in self.factors.flatten(0, 1):
            nn.init.xavier_uniform_(factor)
        self.out.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        hidden = mask_absent(self.project(mask_absent(x, present)), present, fill=1.0)
        parts = hidden.unflatten(-1, (self.blocks, -1))  # (..., M, N, F / N)
        factors = torch.einsum("...mni,mnio->...mno", parts, self.factors)
        terms = masked_product(factors.flatten(-2)).unflatten(-1, (self.blocks, self.rank, -1))
        return FusionOutput(self.out(terms.sum(-2).flatten(-2)), None, {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, hidden_dim={self.hidden_dim}, "
            f"blocks={self.blocks}, rank={self.rank}"
        )
