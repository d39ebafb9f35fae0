"""Tucker fusion: a core tensor between narrow projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import FusionOutput

__all__ = ["TuckerFusion"]


class TuckerFusion(nn.Module):
    r"""Multilinear map in Tucker form (:cite:`benyounes2017mutan`, Eq. 3-5).

    .. math::
        \mathbf{y} = \mathbf{W} \left( \mathbf{T} \times_1 \mathbf{h}_1 \times_2 \cdots
        \times_M \mathbf{h}_M \right) + \mathbf{b}, \qquad
        \mathbf{h}_m = \begin{cases} \mathbf{A}_m \mathbf{x}_m & \text{present} \\
        \mathbf{1} & \text{absent} \end{cases}

    with a core :math:`\mathbf{T} \in \mathbb{R}^{F \times \cdots \times F \times F}` of
    :math:`F^{M+1}` entries. An absent modality sums the core over its axis: dropping it equals
    masking it with such a core. Nothing present gives one constant.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        hidden_dim: Width :math:`F` of every axis of the core.
        max_parameters: Largest core that is made.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, the core would be larger than allowed, or shapes
            disagree.

    Example:
        >>> fusion = TuckerFusion(8, num_modalities=3, hidden_dim=4)
        >>> fusion.core.shape
        torch.Size([4, 4, 4, 4])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        hidden_dim: int = 16,
        max_parameters: int = 2**25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim)
        size = hidden_dim ** (num_modalities + 1)
        if size > max_parameters:
            raise ValueError(
                f"Expected a core of at most max_parameters = {max_parameters} weights, got "
                f"{hidden_dim} ** ({num_modalities} + 1) = {size}. MUTANFusion, BLOCKFusion have "
                "that form with smaller cores."
            )
        self.dim = dim
        self.num_modalities = num_modalities
        self.hidden_dim = hidden_dim
        self.project = ModalityLinear(
            num_modalities, dim, hidden_dim, bias=False, device=device, dtype=dtype
        )
        shape = (hidden_dim,) * (num_modalities + 1)
        self.core = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: a row of the core counts as one layer."""
        self.project.reset_parameters()
        nn.init.normal_(self.core, std=self.hidden_dim ** (-self.num_modalities / 2))
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
        first, *others = hidden.unbind(-2)
        rest = first @ self.core.flatten(1)  # (..., F * ... * F): an axis less each time
        for one in others:
            rest = torch.einsum("...i,...ij->...j", one, rest.unflatten(-1, (self.hidden_dim, -1)))
        return FusionOutput(self.out(rest), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, hidden_dim={self.hidden_dim}"
