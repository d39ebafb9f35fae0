"""Self-attention among modalities and a fusion token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_shape
from mmfuse._transformer import make_layer, through
from mmfuse.layers import mask_absent
from mmfuse.types import FusionOutput

__all__ = ["TransformerFusion"]


class TransformerFusion(nn.Module):
    r"""Transformer over the modalities and a learned fusion token (:cite:`vaswani2017attention`).

    .. math::
        \mathbf{y} = \mathrm{LN}\bigl( \mathrm{Transformer}(
        [\mathbf{f}; \mathbf{x}_1 + \mathbf{e}_1; \ldots; \mathbf{x}_M + \mathbf{e}_M]) \bigr)_0

    The fusion token :math:`\mathbf{f}` reads the modalities in every layer (attention and a
    network, each after a LayerNorm and with a residual), and is what comes out. The learned
    :math:`\mathbf{e}_m` tell modalities apart. Attention runs over modalities, never over time; an
    absent modality is no key, so that dropping it equals masking it. Nothing present leaves what
    the token makes of itself, a constant.

    Args:
        dim: Size :math:`D` of a modality embedding and of the output.
        num_modalities: Number :math:`M` of modalities.
        num_layers: Number of layers.
        num_heads: Number :math:`H` of attention heads.
        hidden_dim: Inner width of a layer; ``None`` means :math:`4 D`.
        dropout: Dropout probability of the attention weights and after each part of a layer.

    Shape:
        - x: :math:`(\ldots, M, D)`
        - present: :math:`(\ldots, M)`, boolean, true where observed
        - context: ignored; here so that fusions can be exchanged
        - fused: :math:`(\ldots, D)`

    Returns:
        :class:`~mmfuse.types.FusionOutput` without weights or losses.

    Raises:
        ValueError: If a size is not positive, ``num_heads`` does not divide ``dim``, ``dropout`` is
            no probability, or shapes disagree.

    Example:
        >>> fusion = TransformerFusion(8, num_modalities=3, num_heads=2)
        >>> fusion(torch.randn(2, 5, 3, 8)).fused.shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_layers: int = 1,
        num_heads: int = 1,
        hidden_dim: int | None = None,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, num_layers=num_layers)
        self.dim = dim
        self.num_modalities = num_modalities
        self.token = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.embedding = nn.Parameter(torch.empty(num_modalities, dim, device=device, dtype=dtype))
        self.layers = nn.ModuleList(
            make_layer(dim, num_heads, hidden_dim, dropout, device=device, dtype=dtype)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw a fresh token, embeddings and layers."""
        nn.init.normal_(self.token, std=0.02)
        nn.init.normal_(self.embedding, std=0.02)
        layers: Any = self.layers
        for layer in layers:
            layer.reset_parameters()
        self.norm.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., M, D)
        present: Tensor | None = None,  # (..., M)
        context: Tensor | None = None,
    ) -> FusionOutput:
        """Return the fused vector; shapes are given in the class docstring."""
        check_shape("x", x, self.num_modalities, self.dim)
        x = mask_absent(x, present) + self.embedding
        x = torch.cat([self.token.expand(*x.shape[:-2], 1, self.dim), x], dim=-2)
        seen = None
        if present is not None:  # the token is always there, so that every row has a key
            seen = F.pad(present, (1, 0), value=True)
        x = through(self.layers, x, seen=seen)
        return FusionOutput(self.norm(x[..., 0, :]), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"
