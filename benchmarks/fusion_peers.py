"""Fusions to compare with: ours, and those of other libraries.

A builder takes the width D and the number M of modalities, and returns a module, or ``None`` where
the library is not installed or has no such fusion for M. Peers take one tensor (N, D) a modality,
which are made before the clock starts; ours take (N, M, D), or (B, L, M, D) with N = B L rows where
they fuse sequences. All return one tensor. Widths inside are those of our defaults.

``exact`` says whether the peer's formula is that of our operator, biases aside; ``note`` how it
differs, and what to know before using it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmfuse.fusion import available, build

__all__ = ["PEERS", "Ours", "Peer", "ours", "unregistered"]

Builder = Callable[[int, int], nn.Module | None]


class Peer(NamedTuple):
    """Another library's fusion, and ours that does the same."""

    ours: str  #: a name of ``mmfuse.fusion.available()``
    exact: bool
    build: Builder
    note: str


class Applied(nn.Module):
    """Some module, and how its output is got from a list of tensors."""

    def __init__(self, module: nn.Module, call: Callable[[Any, list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, *parts: Tensor) -> Tensor:
        return self.call(self.module, list(parts))


class Ours(nn.Module):
    """A fusion by name, reduced to the fused tensor."""

    def __init__(self, name: str, dim: int, num_modalities: int) -> None:
        super().__init__()
        self.module = build(name, dim, num_modalities)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).fused


def ours() -> dict[str, bool]:
    """Every fusion of ours by name, and whether it fuses sequences."""
    return {name: name in available("sequences") for name in available()}


def unregistered(module: nn.Module) -> list[Tensor]:
    """Leaves with gradients that no optimizer finds: they hide in plain lists."""
    hidden = []
    for part in module.modules():
        for value in vars(part).values():
            leaves = value if isinstance(value, list) else [value]
            hidden += [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    return hidden


def library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def by_key(parts: list[Tensor]) -> dict[str, Tensor]:
    return {str(number): part for number, part in enumerate(parts)}


def channels(dim: int, num_modalities: int) -> dict[str, int]:
    return {str(number): dim for number in range(num_modalities)}


# -- torchmultimodal ---------------------------------------------------------------------------


def torchmultimodal_concat(dim: int, num_modalities: int) -> nn.Module | None:
    found = library("torchmultimodal.modules.fusions.concat_fusion")
    if found is None:
        return None
    module = found.ConcatFusionModule(nn.Linear(num_modalities * dim, dim))
    return Applied(module, lambda m, parts: m(by_key(parts)))


def torchmultimodal_mlp(dim: int, num_modalities: int) -> nn.Module | None:
    found = library("torchmultimodal.modules.fusions.concat_fusion")
    if found is None:
        return None
    width = num_modalities * dim
    layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim))
    return Applied(found.ConcatFusionModule(layers), lambda m, parts: m(by_key(parts)))


def torchmultimodal_attention(dim: int, num_modalities: int) -> nn.Module | None:
    found = library("torchmultimodal.modules.fusions.attention_fusion")
    if found is None:
        return None
    module = found.AttentionFusionModule(channels(dim, num_modalities))
    return Applied(module, lambda m, parts: m(by_key(parts)))


def torchmultimodal_deepset(dim: int, num_modalities: int) -> nn.Module | None:
    found = library("torchmultimodal.modules.fusions.deepset_fusion")
    if found is None:
        return None
    module = found.DeepsetFusionModule(
        channels(dim, num_modalities), nn.Linear(dim, dim), torch.sum, apply_attention=True
    )
    return Applied(module, lambda m, parts: m(by_key(parts)))


# -- pykale ------------------------------------------------------------------------------------


def pykale(name: str) -> Any:
    found = library("kale.embed.multimodal_fusion")
    return None if found is None else getattr(found, name)


def pykale_concat(dim: int, num_modalities: int) -> nn.Module | None:
    kind = pykale("Concat")
    if kind is None:
        return None
    parts = nn.ModuleList([kind(), nn.Linear(num_modalities * dim, dim)])
    return Applied(parts, lambda m, parts: m[1](m[0](parts)))


def pykale_low_rank(dim: int, num_modalities: int) -> nn.Module | None:
    kind = pykale("LowRankTensorFusion")
    if kind is None:
        return None
    return Applied(kind([dim] * num_modalities, dim, 4), lambda m, parts: m(parts))


def pykale_bimodal(dim: int, num_modalities: int) -> nn.Module | None:
    kind = pykale("BimodalInteractionFusion")
    if kind is None or num_modalities != 2:
        return None
    return Applied(kind([dim, dim], dim, "matrix"), lambda m, parts: m(parts))


def pykale_product(dim: int, num_modalities: int) -> nn.Module | None:
    kind = pykale("ProductOfExperts")
    if kind is None:
        return None
    parts = nn.ModuleList([kind(), *(nn.Linear(dim, 2 * dim) for _ in range(num_modalities))])

    def call(module: Any, parts: list[Tensor]) -> Tensor:
        pool, *experts = module
        said = torch.stack([expert(part) for expert, part in zip(experts, parts, strict=True)])
        return pool(*said.chunk(2, dim=-1))[0]

    return Applied(parts, call)


# -- block.bootstrap.pytorch -------------------------------------------------------------------


def bilinear(name: str, **options: Any) -> Builder:
    """One of its fusions of two inputs."""

    def make(dim: int, num_modalities: int) -> nn.Module | None:
        found = library("block.models.networks.fusions.fusions")
        if found is None or num_modalities != 2:
            return None
        sizes = {"mm_dim": dim, **options}
        return Applied(getattr(found, name)([dim, dim], dim, **sizes), lambda m, parts: m(parts))

    return make


# -- aecf --------------------------------------------------------------------------------------


def aecf_pool(dim: int, num_modalities: int) -> nn.Module | None:
    found = library("aecf")
    if found is None:
        return None
    query, pool = found.create_fusion_pool(dim, num_modalities)
    pool.register_parameter("fusion_query", query)  # as its documentation asks

    def call(module: Any, parts: list[Tensor]) -> Tensor:
        keys = torch.stack(parts, dim=1)
        return module(module.fusion_query.expand(len(keys), -1, -1), keys).squeeze(1)

    return Applied(pool, call)


LINEAR = {"activ_input": None, "activ_output": None, "normalize": True}
TWO = "two modalities only"

PEERS: dict[str, Peer] = {
    "torchmultimodal ConcatFusionModule": Peer(
        "concat", True, torchmultimodal_concat, "the caller brings the linear layer"
    ),
    "pykale Concat": Peer("concat", True, pykale_concat, "the caller brings the linear layer"),
    "torchmultimodal ConcatFusionModule + MLP": Peer(
        "mlp", True, torchmultimodal_mlp, "the caller brings the network"
    ),
    "torchmultimodal AttentionFusionModule": Peer(
        "gated",
        False,
        torchmultimodal_attention,
        "one weight a modality instead of one an entry; takes (N, D) only: of (B, T, D) with T = M "
        "it weighs time instead of modalities, and says nothing",
    ),
    "torchmultimodal DeepsetFusionModule": Peer(
        "attention_pooling",
        False,
        torchmultimodal_deepset,
        "attention by a network, unit length, then a sum",
    ),
    "aecf create_fusion_pool": Peer(
        "attention_pooling", True, aecf_pool, "a masking curriculum while training, off here"
    ),
    "pykale LowRankTensorFusion": Peer(
        "low_rank",
        True,
        pykale_low_rank,
        "its factors lie in a list, where no optimizer finds them: they are never trained, though "
        "their gradients are computed; too few modalities are taken without an error",
    ),
    "pykale BimodalInteractionFusion": Peer("multiplicative", True, pykale_bimodal, TWO),
    "pykale ProductOfExperts": Peer(
        "product_of_experts", False, pykale_product, "no prior; variances; the caller's experts"
    ),
    "block MLB": Peer("mlb", True, bilinear("MLB", activ_input="tanh", activ_output=None), TWO),
    "block MFB": Peer(
        "mfb", False, bilinear("MFB", factor=5, **LINEAR), f"{TWO}; one linear layer more"
    ),
    "block MFH": Peer("mfh", True, bilinear("MFH", factor=5, **LINEAR), TWO),
    "block Tucker": Peer("tucker", True, bilinear("Tucker", mm_dim=16), TWO),
    "block Mutan": Peer("mutan", False, bilinear("Mutan", mm_dim=64, rank=5), f"{TWO}; no tanh"),
    "block Block": Peer(
        "block",
        False,
        bilinear("Block", mm_dim=64, chunks=4, rank=5),
        f"{TWO}; signed root and unit length of each part",
    ),
}
