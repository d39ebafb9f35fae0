"""Operators that end or enrich the streams: one paper, one file."""

from mmfuse.fusion.camoe import CategoryGuidedMoE
from mmfuse.fusion.concat import ConcatFusion
from mmfuse.fusion.encoder import MultimodalEncoder
from mmfuse.fusion.gated import GatedFusion
from mmfuse.fusion.sum import SumFusion
from mmfuse.fusion.weighted import WeightedFusion

__all__ = [
    "SumFusion",
    "ConcatFusion",
    "WeightedFusion",
    "GatedFusion",
    "CategoryGuidedMoE",
    "MultimodalEncoder",
]
