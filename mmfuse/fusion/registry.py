"""Every fusion by name, for configurations and loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mmfuse._checks import check_choice
from mmfuse.fusion.attention_pooling import AttentionPoolingFusion
from mmfuse.fusion.concat import ConcatFusion
from mmfuse.fusion.film import FiLMFusion
from mmfuse.fusion.gated import GatedFusion
from mmfuse.fusion.low_rank import LowRankFusion
from mmfuse.fusion.mfh import MFBFusion, MFHFusion
from mmfuse.fusion.mixture import MixtureFusion
from mmfuse.fusion.mlb import MLBFusion
from mmfuse.fusion.mlp import MLPFusion
from mmfuse.fusion.multiplicative import MultiplicativeFusion
from mmfuse.fusion.mutan import BLOCKFusion, MUTANFusion
from mmfuse.fusion.product_of_experts import ProductOfExpertsFusion
from mmfuse.fusion.reduce import MaxFusion, MeanFusion, ProductFusion
from mmfuse.fusion.sum import SumFusion
from mmfuse.fusion.tensor import TensorFusion
from mmfuse.fusion.transformer import TransformerFusion
from mmfuse.fusion.tucker import TuckerFusion

__all__ = ["available", "build"]

_FUSIONS: Mapping[str, Callable[..., nn.Module]] = {
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
}


def available() -> tuple[str, ...]:
    r"""Names of the fusions that :func:`build` makes.

    .. math::
        \mathrm{available} = \{ n : \mathrm{build}(n, D, M) \text{ is a fusion} \}

    Shape:
        - output: one name a fusion

    Returns:
        The names, from the plainest fusion on.

    Raises:
        TypeError: If it is given an argument.

    Example:
        >>> available()[:4]
        ('sum', 'mean', 'max', 'product')
    """
    return tuple(_FUSIONS)


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
        TypeError: If the fusion has no such option.

    Example:
        >>> build("low_rank", dim=8, num_modalities=3, rank=2).rank
        2
    """
    check_choice("name", name, _FUSIONS)
    return _FUSIONS[name](dim, num_modalities, **options)
