"""Objectives that bring modalities together, and losses that keep routing healthy."""

from mmfuse.losses.info_nce import InfoNCELoss, info_nce
from mmfuse.losses.modality_swap import ModalitySwapInfoNCE, swap_modalities
from mmfuse.losses.routing import (
    cv_squared_loss,
    expert_diversity_loss,
    load_balance_loss,
    router_entropy_loss,
    router_z_loss,
)

__all__ = [
    "info_nce",
    "InfoNCELoss",
    "swap_modalities",
    "ModalitySwapInfoNCE",
    "load_balance_loss",
    "cv_squared_loss",
    "router_z_loss",
    "router_entropy_loss",
    "expert_diversity_loss",
]
