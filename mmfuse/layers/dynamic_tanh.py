"""Dynamic tanh: a normalisation-free stand-in for LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape

__all__ = ["DynamicTanh"]


class DynamicTanh(nn.Module):
    r"""Squash with a learned slope, as introduced in :cite:`zhu2025dyt`.

    .. math::
        y = \tanh(\alpha x) \qquad \text{or} \qquad
        y = \boldsymbol\gamma \odot \tanh(\alpha x) + \boldsymbol\beta

    where the scalar :math:`\alpha` is learned, and :math:`\boldsymbol\gamma, \boldsymbol\beta`
    too if ``affine``. Eq. 13 of :cite:`xu2026cammsr` is the form without them. Unlike LayerNorm,
    it needs no statistics: no position and no feature looks at another.

    Args:
        dim: Size :math:`D` of a vector.
        alpha: Initial slope :math:`\alpha > 0`.
        affine: Whether to learn :math:`\boldsymbol\gamma` and :math:`\boldsymbol\beta`.

    Shape:
        - x: :math:`(\ldots, D)`
        - output: :math:`(\ldots, D)`

    Raises:
        ValueError: If ``dim`` or ``alpha`` is not positive, or ``x`` has another width.

    Example:
        >>> layer = DynamicTanh(2, alpha=0.5)
        >>> layer(torch.tensor([0.0, 2.0])).detach()
        tensor([0.0000, 0.7616])
    """

    def __init__(
        self,
        dim: int,
        *,
        alpha: float = 0.5,
        affine: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, alpha=alpha)
        self.dim = dim
        self.initial_alpha = alpha
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if affine else None
        self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the slope to its initial value, the scale to one and the shift to zero."""
        nn.init.constant_(self.alpha, self.initial_alpha)
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        """Squash every number; shapes are given in the class docstring."""
        check_shape("x", x, self.dim)
        squashed = torch.tanh(self.alpha * x)
        if self.weight is None or self.bias is None:
            return squashed
        return self.weight * squashed + self.bias

    def extra_repr(self) -> str:
        affine = self.weight is not None
        return f"dim={self.dim}, alpha={self.initial_alpha}, affine={affine}"
