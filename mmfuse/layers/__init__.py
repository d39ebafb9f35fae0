"""Small shared layers."""

from mmfuse.layers.dynamic_tanh import DynamicTanh
from mmfuse.layers.masking import (
    apply_where,
    mask_absent,
    masked_product,
    masked_softmax,
    observed,
)
from mmfuse.layers.modality_linear import ModalityLinear

__all__ = [
    "DynamicTanh",
    "ModalityLinear",
    "apply_where",
    "mask_absent",
    "masked_product",
    "masked_softmax",
    "observed",
]
