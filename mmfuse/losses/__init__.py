"""Objectives that bring modalities together, and losses that keep routing healthy."""

from mmfuse.losses.alignment import (
    AlignmentLoss,
    UniformityLoss,
    alignment_loss,
    uniformity_loss,
)
from mmfuse.losses.debiased import DebiasedInfoNCELoss, debiased_info_nce
from mmfuse.losses.gathering import all_gather_rows
from mmfuse.losses.info_nce import InfoNCELoss, info_nce
from mmfuse.losses.modality_swap import ModalitySwapInfoNCE, swap_modalities
from mmfuse.losses.multiway import MultiwayInfoNCELoss, multiway_info_nce
from mmfuse.losses.queue import KeyQueue
from mmfuse.losses.routing import (
    cv_squared_loss,
    expert_diversity_loss,
    load_balance_loss,
    router_entropy_loss,
    router_z_loss,
)
from mmfuse.losses.sigmoid import SigmoidContrastiveLoss, sigmoid_contrastive_loss
from mmfuse.losses.supervised import SupervisedContrastiveLoss, supervised_contrastive_loss
from mmfuse.losses.temperature import LearnedTemperature

__all__ = [
    "info_nce",
    "InfoNCELoss",
    "multiway_info_nce",
    "MultiwayInfoNCELoss",
    "debiased_info_nce",
    "DebiasedInfoNCELoss",
    "supervised_contrastive_loss",
    "SupervisedContrastiveLoss",
    "sigmoid_contrastive_loss",
    "SigmoidContrastiveLoss",
    "alignment_loss",
    "AlignmentLoss",
    "uniformity_loss",
    "UniformityLoss",
    "KeyQueue",
    "LearnedTemperature",
    "all_gather_rows",
    "swap_modalities",
    "ModalitySwapInfoNCE",
    "load_balance_loss",
    "cv_squared_loss",
    "router_z_loss",
    "router_entropy_loss",
    "expert_diversity_loss",
]
