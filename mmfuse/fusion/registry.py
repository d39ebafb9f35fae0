"""Every fusion by name, for configurations and loops."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from mmfuse._checks import check_choice
from mmfuse.fusion.attention_pooling import AttentionPoolingFusion
from mmfuse.fusion.bottleneck import BottleneckFusion
from mmfuse.fusion.concat import ConcatFusion
from mmfuse.fusion.dif import DIFFusion
from mmfuse.fusion.dynamic import DynamicFusion
from mmfuse.fusion.fdsa import FDSAFusion
from mmfuse.fusion.film import FiLMFusion
from mmfuse.fusion.frequency import FrequencyFusion
from mmfuse.fusion.gated import GatedFusion
from mmfuse.fusion.graph import GraphFusion
from mmfuse.fusion.interactive import InteractiveFusion
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
from mmfuse.fusion.sum import SumFusion
from mmfuse.fusion.tensor import TensorFusion
from mmfuse.fusion.transformer import TransformerFusion
from mmfuse.fusion.tucker import TuckerFusion
from mmfuse.fusion.whitening import WhiteningFusion

__all__ = ["available", "build"]

_SIZES = ("dim", "num_modalities")

_ROWS: Mapping[str, Callable[..., nn.Module]] = {
    "sum": SumFusion,
    "mean": MeanFusion,
    "max": MaxFusion,
    "product": ProductFusion,
    "concat": ConcatFusion,
    "mlp": MLPFusion,
    "gated": GatedFusion,
    "film": FiLMFusion,
    "multiplicative": MultiplicativeFusion,
    "tensor": TensorFusion,
    "low_rank": LowRankFusion,
    "mlb": MLBFusion,
    "mfb": MFBFusion,
    "mfh": MFHFusion,
    "tucker": TuckerFusion,
    "mutan": MUTANFusion,
    "block": BLOCKFusion,
    "attention_pooling": AttentionPoolingFusion,
    "transformer": TransformerFusion,
    "product_of_experts": ProductOfExpertsFusion,
    "mixture": MixtureFusion,
    "bottleneck": BottleneckFusion,
    "whitening": WhiteningFusion,
    "dynamic": DynamicFusion,
    "interactive": InteractiveFusion,
    "graph": GraphFusion,
}

_SEQUENCES: Mapping[str, Callable[..., nn.Module]] = {
    "frequency": FrequencyFusion,
    "mixer": MixerFusion,
    "fdsa": FDSAFusion,
    "nova": NOVAFusion,
    "dif": DIFFusion,
    "mult": MulTFusion,
}


def available(kind: Literal["rows", "sequences"] | None = None) -> tuple[str, ...]:
    r"""Names of the fusions that :func:`build` makes.

    .. math::
        \mathrm{available} = \{ n : \mathrm{build}(n, D, M) \text{ is a fusion} \}

    Args:
        kind: ``"rows"`` for those that fuse each row :math:`(M, D)` by itself, ``"sequences"`` for
            those that fuse :math:`(\ldots, L, M, D)` along :math:`L`, and take ``valid``, false at
            padding, by keyword; ``None`` for all.

    Shape:
        - output: one name a fusion

    Returns:
        The names, from the plainest fusion on.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> available()[:4]
        ('sum', 'mean', 'max', 'product')
        >>> available("sequences")
        ('frequency', 'mixer', 'fdsa', 'nova', 'dif', 'mult')
    """
    kinds = {"rows": tuple(_ROWS), "sequences": tuple(_SEQUENCES)}
    if kind is None:
        return (*_ROWS, *_SEQUENCES)
    check_choice("kind", kind, kinds)
    return kinds[kind]


def build(name: str, dim: int, num_modalities: int, **options: Any) -> nn.Module:
    r"""Make a fusion by its name.

    .. math::
        \mathrm{build}(n, D, M) : (\ldots, M, D) \to (\ldots, D)

    Args:
        name: One of :func:`available`.
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        options: Keyword arguments of that fusion.

    Shape:
        - output: a :class:`~mmfuse.types.Fusion`

    Returns:
        The fusion.

    Raises:
        ValueError: If there is no fusion of that name, or what the fusion raises.
        TypeError: If the fusion has no such option; the message lists those that it has.

    Example:
        >>> build("low_rank", dim=8, num_modalities=3, rank=2).rank
        2
    """
    check_choice("name", name, available())
    fusion = {**_ROWS, **_SEQUENCES}[name]
    known = [option for option in inspect.signature(fusion).parameters if option not in _SIZES]
    for option in options:
        if option not in known:
            listed = ", ".join(map(repr, known))
            raise TypeError(f"Expected options of {name!r} among {listed}, got {option!r}.")
    return fusion(dim, num_modalities, **options)
