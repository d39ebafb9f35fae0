"""Feature-wise linear modulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_below, check_positive, check_shape
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import FusionOutput

__all__ = ["FiLMFusion"]


class FiLMFusion(nn.Module):
    r"""Feature-wise linear modulation (FiLM) of one modality by the others (:cite:`perez2018film`).

    .. math::
        \mathbf{y} = (1 + \boldsymbol\gamma) \odot p_t \mathbf{x}_t + \boldsymbol\beta, \qquad
        [\boldsymbol\gamma; \boldsymbol\beta] = \sum_{m \neq t} p_m
        (\mathbf{W}_m \mathbf{x}_m + \mathbf{b}_m)

    where modality :math:`t` is modulated and :math:`p_m` tells whether modality :math:`m` was
    observed: dropping an absent modulating modality equals masking it. Without any modulation, as
    with :math:`M = 1`, the modulated modality passes as it is; where it is absent,
    :math:`\boldsymbol\beta` is left, and nothing present gives zero.

    .. note::
        The paper has one modulating input. Further ones add up, as one linear map of their
        concatenation would.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        target: Which modality :math:`t` is modulated.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``target`` is no modality, or shapes disagree.

    Example:
        >>> fusion, x = FiLMFusion(8, num_modalities=2), torch.randn(5, 2, 8)
        >>> alone = torch.tensor([True, False]).expand(5, 2)
        >>> torch.equal(fusion(x, alone).fused, x[:, 0])
        True
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        target: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities)
        check_below("num_modalities", num_modalities, target=target)
        self.dim = dim
        self.num_modalities = num_modalities
        self.target = target
        self.modulation = (
            ModalityLinear(num_modalities - 1, dim, 2 * dim, device=device, dtype=dtype)
            if num_modalities > 1
            else None
        )

    def reset_parameters(self) -> None:
        """Draw fresh weights."""
        if self.modulation is not None:
            self.modulation.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        own = x[..., self.target, :]
        if self.modulation is None:
            return FusionOutput(own.clone(), None, {})
        others = [m for m in range(self.num_modalities) if m != self.target]
        there = None if present is None else present[..., others]
        scale, shift = mask_absent(self.modulation(x[..., others, :]), there).sum(-2).chunk(2, -1)
        return FusionOutput((1 + scale) * own + shift, None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}, target={self.target}"
