"""CAMoE: category-guided attentive mixture of experts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mmfuse.experts import AttentiveMoE
from mmfuse.gating import CategoryGuidedGate
from mmfuse.layers import mask_absent, observed
from mmfuse.types import EnrichmentOutput

__all__ = ["CategoryGuidedMoE"]


class CategoryGuidedMoE(nn.Module):
    r"""Add cross-modal expert knowledge to each stream, by category (:cite:`xu2026cammsr`, CAMoE).

    .. math::
        \bar{\mathbf{e}}_m = \mathbf{e}_m + w^m \hat{\mathbf{e}}_m

    Eq. 11, where :math:`\hat{\mathbf{e}}_m` comes from an
    :class:`~mmfuse.experts.AttentiveMoE` (Eq. 5-7) and :math:`w^m` from a
    :class:`~mmfuse.gating.CategoryGuidedGate` (Eq. 8-10). Every choice that the paper leaves open
    is an argument, described at those two blocks. An absent stream stays zero; padding is zero.

    Args:
        dim: Size :math:`D` of a modality embedding.
        num_modalities: Number :math:`M` of modalities.
        num_categories: Number :math:`C` of categories.
        num_experts: Number :math:`E` of experts for each modality.
        hidden_dim: Hidden width of one expert; ``None`` means :math:`4D`.
        router: ``"attentive"`` or ``"linear"``, one that sees a position alone.
        reads: Whether experts read ``"all"`` modalities of a position, or their ``"own"``.
        causal: Whether attentive routers see only the own position and earlier ones.
        normalize: Whether the weights of attentive routers sum to one; as printed they do not.
        shared_experts: Whether the modalities share one bank of experts.
        top_k: How many experts each token keeps; ``None`` means all, as printed.
        guidance: ``"confidence"`` or ``"difficulty"``, the sign of Eq. 10.
        reduction: ``"mean"`` or ``"sum"`` over the categories in Eq. 9.
        pooling: ``"max"`` or ``"joint"`` over several labels of one item.
        temperature: Temperature of the softmax of Eq. 10.
        detach: Whether the category gate leaves the embeddings alone.

    Shape:
        - x: :math:`(\ldots, L, M, D)`
        - present: :math:`(\ldots, L, M)`, boolean, true where observed
        - context: the categories: :math:`(\ldots, L)` int64 with -100 for unknown, or
          :math:`(\ldots, L, C)` multi-hot; ``None`` means all unknown, hence equal weights
        - valid: :math:`(\ldots, L)`, boolean, false at padding
        - output x: :math:`(\ldots, L, M, D)`; weights: :math:`(\ldots, L, M)`

    Returns:
        :class:`~mmfuse.types.EnrichmentOutput` with the loss ``"category"``.

    Raises:
        ValueError: If a size is not positive, a word is not among the choices, or shapes disagree.

    Example:
        >>> block = CategoryGuidedMoE(8, num_modalities=3, num_categories=5)
        >>> categories = torch.tensor([[0, 4, -100]])
        >>> block(torch.randn(1, 3, 3, 8), context=categories).x.shape
        torch.Size([1, 3, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        num_categories: int,
        num_experts: int = 4,
        *,
        hidden_dim: int | None = None,
        router: Literal["attentive", "linear"] = "attentive",
        reads: Literal["all", "own"] = "all",
        causal: bool = True,
        normalize: bool = False,
        shared_experts: bool = False,
        top_k: int | None = None,
        guidance: Literal["confidence", "difficulty"] = "confidence",
        reduction: Literal["mean", "sum"] = "mean",
        pooling: Literal["max", "joint"] = "max",
        temperature: float = 1.0,
        detach: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mixture = AttentiveMoE(
            dim,
            num_modalities,
            num_experts,
            hidden_dim=hidden_dim,
            router=router,
            reads=reads,
            causal=causal,
            normalize=normalize,
            shared_experts=shared_experts,
            top_k=top_k,
            device=device,
            dtype=dtype,
        )
        self.gate = CategoryGuidedGate(
            dim,
            num_modalities,
            num_categories,
            guidance=guidance,
            reduction=reduction,
            pooling=pooling,
            temperature=temperature,
            detach=detach,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self) -> None:
        """Draw fresh routers, experts and classifiers."""
        self.mixture.reset_parameters()
        self.gate.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., L, M, D)
        present: Tensor | None = None,  # (..., L, M)
        context: Tensor | None = None,  # (..., L) or (..., L, C)
        *,
        valid: Tensor | None = None,  # (..., L)
    ) -> EnrichmentOutput:
        """Return the enriched streams; shapes are given in the class docstring."""
        output, router, _ = self.mixture(x, present, valid=valid)
        seen = observed(x, present, valid)
        weights, losses = self.gate(x, seen, context)
        enriched = mask_absent(x, seen) + weights.unsqueeze(-1) * output
        return EnrichmentOutput(enriched, weights, router, losses)
