"""Product of Gaussian experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_positive, check_shape
from mmfuse._precision import at_least_float32
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import FusionOutput

__all__ = ["ProductOfExpertsFusion"]


class ProductOfExpertsFusion(nn.Module):
    r"""Mean of a product of Gaussian experts and a prior (:cite:`wu2018mvae`, Section 2.1).

    .. math::
        \mathbf{y} = \frac{\sum_m p_m \boldsymbol\tau_m \odot \boldsymbol\mu_m}
        {1 + \sum_m p_m \boldsymbol\tau_m}, \qquad
        \boldsymbol\mu_m = \mathbf{A}_m \mathbf{x}_m + \mathbf{a}_m, \qquad
        \log \boldsymbol\tau_m = \mathbf{B}_m \mathbf{x}_m + \mathbf{b}_m

    Each modality :math:`m` says :math:`\mathcal{N}(\boldsymbol\mu_m, 1 / \boldsymbol\tau_m)`, the
    prior says :math:`\mathcal{N}(0, 1)`; the sure ones count most. :math:`p_m` tells whether
    modality :math:`m` was observed: an absent one says nothing, so that dropping it equals masking
    it. Nothing present leaves the prior's mean, zero. A precision is a softmax in log space, which
    cannot overflow.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`; weights: :math:`(\ldots, M)`, the
          mean share of each modality in the precision; the rest is the prior's

    Returns:
        :class:`~mmfuse.types.FusionOutput` without losses.

    Raises:
        ValueError: If a size is not positive, or shapes disagree.

    Example:
        >>> fusion = ProductOfExpertsFusion(8, num_modalities=3)
        >>> nobody = torch.zeros(2, 3, dtype=torch.bool)
        >>> fusion(torch.randn(2, 3, 8), nobody).fused.abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
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
        self.experts = ModalityLinear(num_modalities, dim, 2 * dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw fresh weights (Xavier), without bias."""
        self.experts.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        mean, log_precision = self.experts(mask_absent(x, present)).chunk(2, dim=-1)
        scores = log_precision.to(at_least_float32(log_precision))
        if present is not None:
            scores = scores.masked_fill(~present.unsqueeze(-1), -torch.inf)
        prior = torch.zeros_like(scores[..., :1, :])
        shares = torch.cat([prior, scores], dim=-2).softmax(-2)[..., 1:, :].to(mean.dtype)
        fused = (shares * mask_absent(mean, present)).sum(-2)
        return FusionOutput(fused, shares.mean(-1), {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
