"""Objectives that bring modalities together."""

from mmfuse.losses.info_nce import InfoNCELoss, info_nce
from mmfuse.losses.modality_swap import ModalitySwapInfoNCE, swap_modalities

__all__ = [
    "info_nce",
    "InfoNCELoss",
    "swap_modalities",
    "ModalitySwapInfoNCE",
]
