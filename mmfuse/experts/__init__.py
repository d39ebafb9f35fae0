"""Who processes a token: experts, routers, and the mixtures made of both."""

from mmfuse.experts.attentive import AttentiveRouter, attentive_routing
from mmfuse.experts.attentive_moe import AttentiveMoE
from mmfuse.experts.dispatch import (
    combine_rows,
    gather_rows,
    limit_capacity,
    plan_dispatch,
)
from mmfuse.experts.expert_choice import ExpertChoiceRouter
from mmfuse.experts.experts import Experts
from mmfuse.experts.hash import HashRouter
from mmfuse.experts.mixture import MixtureOfExperts
from mmfuse.experts.parallel import ExpertParallel
from mmfuse.experts.rows import expert_rows
from mmfuse.experts.sigmoid import SigmoidRouter
from mmfuse.experts.soft import SlotRouter, SoftRouter
from mmfuse.experts.top_k import NoisyTopKRouter, TopKRouter

__all__ = [
    "MixtureOfExperts",
    "Experts",
    "TopKRouter",
    "NoisyTopKRouter",
    "SigmoidRouter",
    "SoftRouter",
    "SlotRouter",
    "ExpertChoiceRouter",
    "HashRouter",
    "AttentiveRouter",
    "attentive_routing",
    "AttentiveMoE",
    "ExpertParallel",
    "expert_rows",
    "plan_dispatch",
    "gather_rows",
    "combine_rows",
    "limit_capacity",
]
