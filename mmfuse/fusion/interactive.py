"""Experts that read all modalities and give each its part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmfuse._checks import check_below, check_positive, check_shape
from mmfuse._precision import at_least_float32, without_autocast
from mmfuse.layers import ModalityLinear, mask_absent
from mmfuse.types import EnrichmentOutput, FusionOutput, RouterOutput

__all__ = ["InteractiveFusion", "InteractiveMixture"]


class InteractiveMixture(nn.Module):
    r"""Interactive mixture of experts, an enrichment, as in HM4SR (:cite:`zhang2025hm4sr`).

    .. math::
        \hat{\mathbf{x}}_m = \mathbf{x}_m + a_m \sum_{e=1}^{E} g_{me} \bigl[ \mathbf{W}_e
        [\mathbf{x}_1; \ldots; \mathbf{x}_M] + \mathbf{b}_e \bigr]_m, \qquad
        \mathbf{g}_m = \operatorname{softmax}(\mathbf{U}_m \mathbf{x}_m + \mathbf{c}_m)

    Experts are shared: each makes :math:`M D` numbers, of which :math:`[\cdot]_m` are those of
    modality :math:`m`. The learned :math:`a_m` start at one, that of ``target``, the item id in the
    paper, at zero. An absent modality enters the experts as zeros, and its own stream stays zero.

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.
        num_experts: Number :math:`E` of experts.
        target: Which modality starts without anything added; ``None`` means none.

    Shape:
        - x: :math:`(\ldots, M, D)`, before and after
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that blocks can be exchanged
        - weights: :math:`(\ldots, M)`, the :math:`a_m`, zero where absent
        - router.expert_weight: :math:`(\ldots, M, E)`, the :math:`\mathbf{g}_m`, zero
          where absent

    Returns:
        :class:`~mmfuse.types.EnrichmentOutput` without losses.

    Raises:
        ValueError: If a size is not positive, ``target`` is no modality, or shapes disagree.

    Example:
        >>> mixture = InteractiveMixture(8, num_modalities=3)
        >>> mixture(torch.randn(5, 3, 8)).x.shape
        torch.Size([5, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_experts: int = 4,
        target: int | None = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, num_experts=num_experts)
        check_below("num_modalities", num_modalities, target=target or 0)
        self.dim = dim
        self.num_modalities = num_modalities
        self.num_experts = num_experts
        self.target = target
        width = num_modalities * dim
        self.gate = ModalityLinear(num_modalities, dim, num_experts, device=device, dtype=dtype)
        self.experts = nn.Linear(width, num_experts * width, device=device, dtype=dtype)
        self.amount = nn.Parameter(torch.empty(num_modalities, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh experts and gates; nothing is added to the target."""
        self.gate.reset_parameters()
        self.experts.reset_parameters()
        nn.init.ones_(self.amount)
        if self.target is not None:
            with torch.no_grad():
                self.amount[self.target] = 0

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> EnrichmentOutput:
        """Return the enriched streams; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present)
        shares = mask_absent(self._shares(x), present)  # (..., M, E)
        made = self.experts(x.flatten(-2)).unflatten(-1, (self.num_experts, *x.shape[-2:]))
        told = torch.einsum("...me,...emd->...md", shares, made)
        amount = self.amount.expand(x.shape[:-1])
        if present is not None:
            amount = torch.where(present, amount, torch.zeros_like(amount))
        enriched = x + amount.unsqueeze(-1) * told
        return EnrichmentOutput(enriched, amount, RouterOutput(shares, {}), {})

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, "
            f"num_experts={self.num_experts}, target={self.target}"
        )

    def _shares(self, x: Tensor) -> Tensor:  # (..., M, D) -> (..., M, E)
        """Of the experts, computed in float32 at least."""
        wide, (weight, bias) = at_least_float32(x), self.gate.parameters()
        with without_autocast(x.device):
            scores = torch.einsum("...md,med->...me", x.to(wide), weight.to(wide)) + bias.to(wide)
        return torch.softmax(scores, dim=-1).to(x.dtype)


class InteractiveFusion(nn.Module):
    r"""The sum of the streams that :class:`InteractiveMixture` made (:cite:`zhang2025hm4sr`).

    .. math::
        \mathbf{y} = \sum_m p_m \hat{\mathbf{x}}_m

    where :math:`p_m` tells whether modality :math:`m` was observed. Dropping an absent modality
    equals masking it. Nothing present gives zero.

    .. note::
        The paper does not fuse: a Transformer a modality reads the enriched streams, and the scores
        are added. For this, use the enrichment.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_experts: Number :math:`E` of experts.
        target: Which modality starts without anything added; ``None`` means none.

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
        >>> fusion = InteractiveFusion(8, num_modalities=3)
        >>> fusion(torch.randn(5, 3, 8)).fused.shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_experts: int = 4,
        target: int | None = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mixture = InteractiveMixture(
            dim,
            num_modalities,
            num_experts=num_experts,
            target=target,
            device=device,
            dtype=dtype,
        )
        self.dim = dim
        self.num_modalities = num_modalities

    def reset_parameters(self) -> None:
        """Draw fresh experts and gates."""
        self.mixture.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        return FusionOutput(self.mixture(x, present).x.sum(-2), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
