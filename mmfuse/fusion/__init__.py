"""Operators that end or enrich the streams: one paper, one file."""

from mmfuse.fusion.attention_pooling import AttentionPoolingFusion
from mmfuse.fusion.bottleneck import BottleneckFusion
from mmfuse.fusion.camoe import CategoryGuidedMoE
from mmfuse.fusion.concat import ConcatFusion
from mmfuse.fusion.dif import DIFFusion
from mmfuse.fusion.dynamic import DynamicFusion
from mmfuse.fusion.encoder import MultimodalEncoder
from mmfuse.fusion.fdsa import FDSAFusion
from mmfuse.fusion.film import FiLMFusion
from mmfuse.fusion.frequency import FrequencyFusion
from mmfuse.fusion.gated import GatedFusion
from mmfuse.fusion.graph import GraphFusion
from mmfuse.fusion.interactive import InteractiveFusion, InteractiveMixture
from mmfuse.fusion.low_rank import LowRankFusion
from mmfuse.fusion.mfh import MFBFusion, MFHFusion
from mmfuse.fusion.mixer import MixerFusion
from mmfuse.fusion.mixture import MixtureFusion
from mmfuse.fusion.mlb import MLBFusion
from mmfuse.fusion.mlp import MLPFusion
from mmfuse.fusion.mult import MulTFusion
from mmfuse.fusion.multiplicative import MultiplicativeFusion
from mmfuse.fusion.mutan import BLOCKFusion, MUTANFusion
from mmfuse.fusion.nova import NOVAFusion
from mmfuse.fusion.product_of_experts import ProductOfExpertsFusion
from mmfuse.fusion.reduce import MaxFusion, MeanFusion, ProductFusion
from mmfuse.fusion.registry import available, build
from mmfuse.fusion.sum import SumFusion
from mmfuse.fusion.tensor import TensorFusion
from mmfuse.fusion.transformer import TransformerFusion
from mmfuse.fusion.tucker import TuckerFusion
from mmfuse.fusion.weighted import WeightedFusion
from mmfuse.fusion.whitening import WhiteningFusion

__all__ = [
    "SumFusion",
    "MeanFusion",
    "MaxFusion",
    "ProductFusion",
    "ConcatFusion",
    "MLPFusion",
    "WeightedFusion",
    "GatedFusion",
    "FiLMFusion",
    "MultiplicativeFusion",
    "TensorFusion",
    "LowRankFusion",
    "MLBFusion",
    "MFBFusion",
    "MFHFusion",
    "TuckerFusion",
    "MUTANFusion",
    "BLOCKFusion",
    "AttentionPoolingFusion",
    "TransformerFusion",
    "ProductOfExpertsFusion",
    "MixtureFusion",
    "BottleneckFusion",
    "WhiteningFusion",
    "DynamicFusion",
    "InteractiveMixture",
    "InteractiveFusion",
    "FrequencyFusion",
    "MixerFusion",
    "FDSAFusion",
    "NOVAFusion",
    "DIFFusion",
    "MulTFusion",
    "GraphFusion",
    "CategoryGuidedMoE",
    "MultimodalEncoder",
    "available",
    "build",
]
