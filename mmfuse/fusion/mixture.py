"""Fusion by a mixture of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse.experts import Experts, MixtureOfExperts, SoftRouter
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["MixtureFusion"]


class MixtureFusion(nn.Module):
    r"""Fuse the concatenation by a mixture of experts (:cite:`shazeer2017moe`, Eq. 1).

    .. math::
        \mathbf{y} = \sum_k g_k(\mathbf{c}) \, \mathrm{Expert}_k(\mathbf{c}), \qquad
        \mathbf{c} = [p_1 \mathbf{x}_1; \ldots; p_M \mathbf{x}_M]

    where :math:`p_m` tells whether modality :math:`m` was observed: an absent modality is zero in
    the concatenation. Each expert is a way to fuse, and the router chooses by what there is. A row
    with nothing present goes to no expert and gives zero.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_experts: Number :math:`E` of experts.
        hidden_dim: Hidden width of an expert; ``None`` means :math:`M D`.
        router: Any router of :mod:`mmfuse.experts` on tokens of width :math:`M D`, for as many
            experts; ``None`` means a :class:`~mmfuse.experts.SoftRouter`.

    Shape:
        - x: :math:`(\ldots, M, D)`; :math:`(\ldots, L, M, D)` where the router looks along a
          sequence
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: what the router takes, such as categories
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` with the router's losses, without weights.

    Raises:
        ValueError: If a size is not positive, the router has another number of experts, or shapes
            disagree.

    Example:
        >>> from mmfuse.experts import TopKRouter
        >>> fusion = MixtureFusion(8, 3, num_experts=4, router=TopKRouter(3 * 8, 4, top_k=2))
        >>> fused, _, losses = fusion(torch.randn(5, 3, 8))
        >>> fused.shape, sorted(losses)
        (torch.Size([5, 8]), ['balance', 'z'])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_experts: int = 4,
        hidden_dim: int | None = None,
        router: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, num_experts=num_experts)
        wide = num_modalities * dim
        hidden_dim = wide if hidden_dim is None else hidden_dim
        if router is None:
            router = SoftRouter(wide, num_experts, device=device, dtype=dtype)
        experts = Experts(num_experts, wide, hidden_dim, dim, device=device, dtype=dtype)
        self.dim = dim
        self.num_modalities = num_modalities
        self.mixture = MixtureOfExperts(router, experts)

    def reset_parameters(self) -> None:
        """Draw a fresh router and experts."""
        self.mixture.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        together = mask_absent(x, present).flatten(-2)
        somebody = None if present is None else present.any(-1)
        output, _, losses = self.mixture(together, somebody, context)
        return FusionOutput(output, None, losses)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
