"""The door: raw features become modality streams of one width."""

from mmfuse.projection.missing import LearnedStandIn, ModalityDropout
from mmfuse.projection.projection import ModalityProjection
from mmfuse.projection.table import FeatureTable

__all__ = [
    "ModalityProjection",
    "FeatureTable",
    "ModalityDropout",
    "LearnedStandIn",
]
