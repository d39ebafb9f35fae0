"""What enriches the streams of CAMMSR: category-guided experts, or nothing but the gate."""

from __future__ import annotations

from torch import Tensor, nn

from cammsr.config import ModelConfig
from mmfuse import CategoryGuidedGate, CategoryGuidedMoE
from mmfuse.layers import mask_absent, observed
from mmfuse.types import EnrichmentOutput, RouterOutput, Streams

__all__ = ["WithoutExperts", "enrich_alone", "make_enrichment"]


def make_enrichment(config: ModelConfig, num_modalities: int, num_categories: int) -> nn.Module:
    """The enrichment that a configuration describes (Eq. 5-11)."""
    if config.mixture == "none":
        return WithoutExperts(
            CategoryGuidedGate(
                config.dim,
                num_modalities,
                num_categories,
                guidance=config.guidance,
                reduction=config.reduction,
                pooling=config.pooling,
                temperature=config.gate_temperature,
                detach=config.detach_gate,
            ),
            config.num_experts,
        )
    return CategoryGuidedMoE(
        config.dim,
        num_modalities,
        num_categories,
        config.num_experts,
        router=config.router,
        reads="own" if config.mixture == "own" else "all",
        normalize=config.normalize_experts,
        shared_experts=config.shared_experts,
        top_k=config.top_k,
        guidance=config.guidance,
        reduction=config.reduction,
        pooling=config.pooling,
        temperature=config.gate_temperature,
        detach=config.detach_gate,
    )


class WithoutExperts(nn.Module):
    """The streams as they are; the gate's weights and its category loss, which read them, stay.

    Every expert of a model with experts counts zero here.
    """

    def __init__(self, gate: CategoryGuidedGate, num_experts: int) -> None:
        super().__init__()
        self.gate = gate
        self.num_experts = num_experts

    def forward(
        self,
        x: Tensor,  # (B, L, M, D)
        present: Tensor | None = None,  # (B, L, M)
        context: Tensor | None = None,  # (B, L, C)
        *,
        valid: Tensor | None = None,  # (B, L)
    ) -> EnrichmentOutput:
        """As :class:`mmfuse.fusion.CategoryGuidedMoE`, of no experts."""
        seen = observed(x, present, valid)
        weights, losses = self.gate(x, seen, context)
        nobody = x.new_zeros(*x.shape[:-1], self.num_experts)
        return EnrichmentOutput(mask_absent(x, seen), weights, RouterOutput(nobody, {}), losses)


def enrich_alone(
    enrichment: nn.Module,
    catalogue: Streams,  # (V, M, D)
    labels: Tensor | None,  # (V, C)
) -> Tensor:  # (V, M, D)
    """Every item enriched as a history of itself alone, which has no position."""
    context = None if labels is None else labels.unsqueeze(1)
    output: EnrichmentOutput = enrichment(
        catalogue.x.unsqueeze(1), catalogue.present.unsqueeze(1), context
    )
    return output.x.squeeze(1)
