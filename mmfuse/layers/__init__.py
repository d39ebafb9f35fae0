"""Small shared layers."""

from mmfuse.layers.dynamic_tanh import DynamicTanh
from mmfuse.layers.masking import apply_where, mask_absent, masked_softmax, observed

__all__ = [
    "DynamicTanh",
    "apply_where",
    "mask_absent",
    "masked_softmax",
    "observed",
]
