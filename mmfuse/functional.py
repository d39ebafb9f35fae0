"""Every public function in one namespace."""

from mmfuse.experts import (
    attentive_routing,
    combine_rows,
    expert_rows,
    gather_rows,
    limit_capacity,
    plan_dispatch,
)
from mmfuse.fusion import available, build
from mmfuse.gating import category_discrepancy
from mmfuse.graph import (
    borrow,
    fuse_graphs,
    knn_graph,
    knn_graphs,
    mix_graphs,
    nearest_neighbours,
    propagate,
)
from mmfuse.layers import apply_where, mask_absent, masked_product, masked_softmax, observed
from mmfuse.losses import (
    alignment_loss,
    cv_squared_loss,
    debiased_info_nce,
    expert_diversity_loss,
    info_nce,
    load_balance_loss,
    multiway_info_nce,
    router_entropy_loss,
    router_z_loss,
    sigmoid_contrastive_loss,
    supervised_contrastive_loss,
    swap_modalities,
    uniformity_loss,
)

__all__ = [
    "alignment_loss",
    "apply_where",
    "attentive_routing",
    "available",
    "borrow",
    "build",
    "category_discrepancy",
    "combine_rows",
    "cv_squared_loss",
    "debiased_info_nce",
    "expert_diversity_loss",
    "expert_rows",
    "fuse_graphs",
    "gather_rows",
    "info_nce",
    "knn_graph",
    "knn_graphs",
    "limit_capacity",
    "load_balance_loss",
    "mask_absent",
    "masked_product",
    "masked_softmax",
    "mix_graphs",
    "multiway_info_nce",
    "nearest_neighbours",
    "observed",
    "plan_dispatch",
    "propagate",
    "router_entropy_loss",
    "router_z_loss",
    "sigmoid_contrastive_loss",
    "supervised_contrastive_loss",
    "swap_modalities",
    "uniformity_loss",
]
