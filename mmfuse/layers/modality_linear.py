"""One linear map a modality."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape

__all__ = ["ModalityLinear"]


class ModalityLinear(nn.Module):
    r"""Map each modality by a matrix of its own.

    .. math::
        \mathbf{y}_m = \mathbf{W}_m \mathbf{x}_m + \mathbf{b}_m

    The maps are one stacked parameter: all modalities in one product, and all of them trained.

    Args:
        num_modalities: Number :math:`M` of modalities.
        in_dim: Input width :math:`D`.
        out_dim: Output width :math:`O`.
        bias: Whether to add :math:`\mathbf{b}_m`.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - output: :math:`(\ldots, M, O)`

    Raises:
        ValueError: If a size is not positive, or ``x`` has another shape.

    Example:
        >>> ModalityLinear(3, 8, 5)(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 5])
    """

    def __init__(
        self,
        num_modalities: int,
        in_dim: int,
        out_dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_modalities=num_modalities, in_dim=in_dim, out_dim=out_dim)
        self.num_modalities = num_modalities
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.weight = nn.Parameter(
            torch.empty(num_modalities, out_dim, in_dim, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(num_modalities, out_dim, device=device, dtype=dtype))
            if bias
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier), without bias."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:  # (..., M, D) -> (..., M, O)
        """Map every modality; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.in_dim)
        rows = x.reshape(-1, self.num_modalities, self.in_dim).transpose(0, 1)  # (M, T, D)
        if self.bias is None:
            y = torch.bmm(rows, self.weight.mT)
        else:
            y = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.mT)
        return y.transpose(0, 1).reshape(*x.shape[:-1], self.out_dim)

    def extra_repr(self) -> str:
        return (
            f"num_modalities={self.num_modalities}, in_dim={self.in_dim}, "
            f"out_dim={self.out_dim}, bias={self.bias is not None}"
        )
