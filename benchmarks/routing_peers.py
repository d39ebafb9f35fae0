"""Mixtures of experts to compare with: ours, their limit, and those of other libraries.

Each builder returns a module that maps ``(T, D)`` to ``(T, D)``, or ``None`` where the library is
not installed. Tokens are handed to libraries that route within a sequence as sequences of 50, since
the cost of their one-hot dispatch grows with the square of the length. ``mixture-of-experts`` and
``st-moe-pytorch`` drop tokens, the slots mix them, the others do neither.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse import Experts, MixtureOfExperts, SlotRouter, TopKRouter

__all__ = ["MIXTURES", "Setting"]

Setting = tuple[int, int, int, int]  # width D, hidden width F, experts E, experts a token K
Builder = Callable[[int, int, int, int], nn.Module | None]


class Applied(nn.Module):
    """Some module, and how its output is got from tokens."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)


def limit(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module:
    """One network of an expert's widths on K rows a token: the same arithmetic, nothing routed."""
    network = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def call(module: nn.Module, x: Tensor) -> Tensor:
        rows = x.unsqueeze(1).expand(-1, top_k, -1).reshape(-1, dim)
        return module(rows).unflatten(0, (-1, top_k)).sum(1)

    return Applied(network, call)


def ours(backend: str) -> Builder:
    def build(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module:
        bank = Experts(experts, dim, hidden, backend=backend)
        return Applied(
            MixtureOfExperts(TopKRouter(dim, experts, top_k), bank), lambda m, x: m(x).output
        )

    return build


def our_slots(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module:
    """As many slots as a sequence of 50 tokens has choices."""
    router = SlotRouter(dim, experts, max(1, 50 * top_k // experts))
    module = MixtureOfExperts(router, Experts(experts, dim, hidden))
    return Applied(module, lambda m, x: m(x.unflatten(0, (-1, 50))).output.flatten(0, 1))


def mixture_of_experts(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module | None:
    if find_spec("mixture_of_experts") is None or top_k != 2:
        return None  # it is for two experts a token
    from mixture_of_experts import MoE

    return Applied(
        MoE(dim, num_experts=experts, hidden_dim=hidden),
        lambda m, x: m(x.unflatten(0, (-1, 50)))[0].flatten(0, 1),
    )


def st_moe(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module | None:
    if find_spec("st_moe_pytorch") is None or top_k < 2:
        return None
    from st_moe_pytorch import MoE

    module = MoE(dim, num_experts=experts, gating_top_n=top_k, expert_hidden_mult=hidden / dim)
    return Applied(module, lambda m, x: m(x.unflatten(0, (-1, 50))).outputs.flatten(0, 1))


def soft_moe(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module | None:
    if find_spec("soft_moe_pytorch") is None:
        return None
    from soft_moe_pytorch import SoftMoE

    module = SoftMoE(
        dim,
        num_experts=experts,
        num_slots=max(1, 50 * top_k // experts),
        expert_mult=hidden / dim,
    )
    return Applied(module, lambda m, x: m(x.unflatten(0, (-1, 50))).flatten(0, 1))


def mixtral(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module | None:
    if find_spec("transformers") is None:
        return None
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    # Three projections instead of two: two thirds of the hidden width is the same arithmetic.
    config = MixtralConfig(
        hidden_size=dim,
        intermediate_size=2 * hidden // 3,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
    )
    config._experts_implementation = "eager"
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.02)

    def call(module: nn.Module, x: Tensor) -> Tensor:
        output = module(x[None])
        return (output[0] if isinstance(output, tuple) else output).squeeze(0)

    return Applied(block, call)


def hetero_linear(dim: int, hidden: int, experts: int, top_k: int) -> nn.Module | None:
    """Two layers of torch_geometric's linear map by type; the router is ours."""
    from torch_geometric.nn import HeteroLinear

    router = TopKRouter(dim, experts, top_k)
    layers = nn.ModuleList(
        [HeteroLinear(dim, hidden, experts), HeteroLinear(hidden, dim, experts), router]
    )

    def call(module: nn.Module, x: Tensor) -> Tensor:
        first, second, route = module  # type: ignore[misc]  # a ModuleList
        routed = route(x)
        kind = routed.expert_index.flatten()
        rows = x.repeat_interleave(top_k, 0)
        rows = second(F.gelu(first(rows, kind)), kind)
        return torch.einsum("tk,tkd->td", routed.expert_weight, rows.unflatten(0, (-1, top_k)))

    return Applied(layers, call)


MIXTURES: dict[str, Builder] = {
    "limit": limit,
    "mmfuse auto": ours("auto"),
    "mmfuse loop": ours("loop"),
    "mmfuse dense": ours("dense"),
    "mmfuse slots": our_slots,
    "mixture-of-experts": mixture_of_experts,
    "st-moe-pytorch": st_moe,
    "soft-moe-pytorch": soft_moe,
    "transformers Mixtral": mixtral,
    "torch_geometric HeteroLinear": hetero_linear,
}
