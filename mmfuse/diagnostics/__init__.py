"""Statistics of a trained model: what its routers did, and what each modality contributed."""

from mmfuse.diagnostics.contributions import gradient_contributions, leave_one_out
from mmfuse.diagnostics.plots import plot_contributions
from mmfuse.diagnostics.routing import (
    RoutingEntropy,
    category_expert_overlap,
    category_expert_use,
    dead_experts,
    dropped_share,
    load_cv,
    routing_entropy,
    tokens_per_expert,
)
from mmfuse.diagnostics.summary import (
    CategoryContributions,
    contribution_shares,
    contributions_by_category,
)

__all__ = [
    "tokens_per_expert",
    "dead_experts",
    "load_cv",
    "RoutingEntropy",
    "routing_entropy",
    "dropped_share",
    "category_expert_use",
    "category_expert_overlap",
    "leave_one_out",
    "gradient_contributions",
    "contribution_shares",
    "CategoryContributions",
    "contributions_by_category",
    "plot_contributions",
]
