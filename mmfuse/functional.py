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
    cv_squared_loss,
    expert_diversity_loss,
    info_nce,
    load_balance_loss,
    router_entropy_loss,
    router_z_loss,
    swap_modalities,
)

__all__ = [
    "apply_where",
    "attentive_routing",
    "available",
    "borrow",
    "build",
    "category_discrepancy",
    "combine_rows",
    "cv_squared_loss",
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
    "nearest_neighbours",
    "observed",
    "plan_dispatch",
    "propagate",
    "router_entropy_loss",
    "router_z_loss",
    "swap_modalities",
]
