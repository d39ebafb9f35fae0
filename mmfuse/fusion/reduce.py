"""Fusions without parameters, beside the sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_mask, check_positive, check_shape
from mmfuse.layers import mask_absent, masked_product
from mmfuse.types import FusionOutput

__all__ = ["MaxFusion", "MeanFusion", "ProductFusion"]


class MeanFusion(nn.Module):
    r"""The mean of what is present.

    .. math::
        \mathbf{y} = \frac{\sum_m p_m \mathbf{x}_m}{\sum_m p_m}

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
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` with the weights :math:`p_m / \sum_j p_j`.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> import torch
        >>> fusion = MeanFusion(2, num_modalities=2)
        >>> fusion(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).fused
        tensor([2., 4.])
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
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        seen = x.new_ones(x.shape[:-1]) if present is None else present.to(x.dtype)
        weights = seen / seen.sum(-1, keepdim=True).clamp_min(1)
        fused = (weights.unsqueeze(-1) * mask_absent(x, present)).sum(-2)
        return FusionOutput(fused, weights, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"


class MaxFusion(nn.Module):
    r"""The largest value of what is present, entry by entry.

    .. math::
        y_d = \max_{m : p_m} x_{md}

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
        >>> fusion = MaxFusion(2, num_modalities=2)
        >>> fusion(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).fused
        tensor([3., 6.])
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
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        if present is None:
            return FusionOutput(x.amax(-2), None, {})
        check_mask("present", present, x.shape[:-1])
        highest = x.masked_fill(~present.unsqueeze(-1), -torch.inf).amax(-2)
        return FusionOutput(mask_absent(highest, present.any(-1)), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"


class ProductFusion(nn.Module):
    r"""The product of what is present, entry by entry.

    .. math::
        y_d = \prod_{m : p_m} x_{md}

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
        >>> fusion = ProductFusion(2, num_modalities=2)
        >>> fusion(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).fused
        tensor([ 3., 12.])
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
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        product = masked_product(x, present)
        somebody = None if present is None else present.any(-1)
        return FusionOutput(mask_absent(product, somebody), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
