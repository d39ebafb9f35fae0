"""Who processes a token: experts, routers, and the mixtures made of both."""

from mmfuse.experts.attentive import AttentiveRouter, attentive_routing
from mmfuse.experts.experts import Experts
from mmfuse.experts.mixture import AttentiveMoE

__all__ = [
    "Experts",
    "AttentiveRouter",
    "attentive_routing",
    "AttentiveMoE",
]
