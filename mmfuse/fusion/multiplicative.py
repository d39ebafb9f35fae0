"""Multiplicative interactions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["MultiplicativeFusion"]


class MultiplicativeFusion(nn.Module):
    r"""Multiplicative interactions of all pairs (:cite:`jayakumar2020multiplicative`, Eq. 1).

    .. math::
        y_o = \sum_{m < n} p_m p_n\, \mathbf{x}_m^\top \mathbf{T}_{mn,o}\, \mathbf{x}_n
        + \sum_m p_m \mathbf{u}_{m,o}^\top \mathbf{x}_m + b_o

    where :math:`p_m` tells whether modality :math:`m` was observed: an absent modality takes its
    pairs and its linear term with it, so that dropping it equals masking it. Nothing present gives
    the bias. A pair costs :math:`D^3` parameters.

    .. note::
        The paper has two inputs. More of them interact in documented pairs, in the order
        :math:`(1, 2), (1, 3), \ldots, (2, 3), \ldots`

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
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
        >>> fusion = MultiplicativeFusion(8, num_modalities=3)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
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
        pairs = num_modalities * (num_modalities - 1) // 2
        self.pair_weight = (
            nn.Parameter(torch.empty(pairs, dim, dim, dim, device=device, dtype=dtype))
            if pairs
            else None
        )
        self.linear = nn.Linear(num_modalities * dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: each product of two numbers counts as one input of a layer."""
        if self.pair_weight is not None:
            nn.init.normal_(self.pair_weight, std=1 / self.dim)
        self.linear.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        fused = self.linear(x.flatten(-2))
        if self.pair_weight is None:
            return FusionOutput(fused, None, {})
        pairs = itertools.combinations(x.unbind(-2), 2)
        for (one, other), weight in zip(pairs, self.pair_weight, strict=True):
            half = (one @ weight.flatten(1)).unflatten(-1, weight.shape[1:])  # (..., D, D)
            fused = fused + torch.einsum("...io,...i->...o", half, other)
        return FusionOutput(fused, None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
