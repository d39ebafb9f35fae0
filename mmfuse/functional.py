"""Every public function in one namespace."""

from mmfuse.experts import attentive_routing
from mmfuse.gating import category_discrepancy
from mmfuse.layers import apply_where, mask_absent, masked_softmax, observed
from mmfuse.losses import info_nce, swap_modalities

__all__ = [
    "apply_where",
    "attentive_routing",
    "category_discrepancy",
    "info_nce",
    "mask_absent",
    "masked_softmax",
    "observed",
    "swap_modalities",
]
