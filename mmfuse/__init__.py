"""Multimodal fusion on PyTorch: gates, experts, fusions, contrast; each tested by its formula."""

from mmfuse import diagnostics, functional, types
from mmfuse.experts import (
    AttentiveMoE,
    AttentiveRouter,
    ExpertChoiceRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    NoisyTopKRouter,
    SigmoidRouter,
    SlotRouter,
    SoftRouter,
    TopKRouter,
)
from mmfuse.fusion import (
    CategoryGuidedMoE,
    ConcatFusion,
    GatedFusion,
    MultimodalEncoder,
    SumFusion,
    WeightedFusion,
)
from mmfuse.gating import CategoryGuidedGate, SoftmaxGate
from mmfuse.layers import DynamicTanh
from mmfuse.losses import InfoNCELoss, ModalitySwapInfoNCE, info_nce, swap_modalities
from mmfuse.projection import FeatureTable, LearnedStandIn, ModalityDropout, ModalityProjection

__version__ = "0.1.0"

__all__ = [
    "AttentiveMoE",
    "AttentiveRouter",
    "CategoryGuidedGate",
    "CategoryGuidedMoE",
    "ConcatFusion",
    "DynamicTanh",
    "ExpertChoiceRouter",
    "Experts",
    "FeatureTable",
    "GatedFusion",
    "HashRouter",
    "InfoNCELoss",
    "LearnedStandIn",
    "MixtureOfExperts",
    "ModalityDropout",
    "ModalityProjection",
    "ModalitySwapInfoNCE",
    "MultimodalEncoder",
    "NoisyTopKRouter",
    "SigmoidRouter",
    "SlotRouter",
    "SoftRouter",
    "SoftmaxGate",
    "SumFusion",
    "TopKRouter",
    "WeightedFusion",
    "__version__",
    "diagnostics",
    "functional",
    "info_nce",
    "swap_modalities",
    "types",
]
