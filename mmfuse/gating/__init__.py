"""How much each modality counts."""

from mmfuse.gating.category import UNKNOWN, CategoryGuidedGate, category_discrepancy
from mmfuse.gating.softmax import SoftmaxGate

__all__ = [
    "SoftmaxGate",
    "CategoryGuidedGate",
    "category_discrepancy",
    "UNKNOWN",
]
