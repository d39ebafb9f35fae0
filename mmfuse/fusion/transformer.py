"""Self-attention among modalities and a fusion token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfuse._checks import check_positive, check_probability, check_shape
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
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        check_positive(dim=dim, num_modalities=num_modalities, hidden_dim=hidden_dim)
        check_positive(num_layers=num_layers, num_heads=num_heads)
        check_probability(dropout=dropout)
        if dim % num_heads:
            raise ValueError(f"Expected dim divisible by num_heads = {num_heads}, got {dim}.")
        self.dim = dim
        self.num_modalities = num_modalities
        self.token = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.embedding = nn.Parameter(torch.empty(num_modalities, dim, device=device, dtype=dtype))
        self.layers = nn.ModuleList(
            _Layer(dim, num_heads, hidden_dim, dropout, device=device, dtype=dtype)
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
            seen = F.pad(present, (1, 0), value=True)[..., None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        return FusionOutput(self.norm(x[..., 0, :]), None, {})

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_modalities={self.num_modalities}"


class _Layer(nn.Module):
    """Attention, then a network; each reads what a LayerNorm made and adds to what was there."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.joint = nn.Linear(dim, 3 * dim, device=device, dtype=dtype)
        self.attention_out = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)
        self.hidden = nn.Linear(dim, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, dim, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for part in self.children():
            if isinstance(part, nn.Linear | nn.LayerNorm):
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,  # (..., N, D)
        seen: Tensor | None,  # (..., 1, 1, N)
    ) -> Tensor:  # (..., N, D)
        joint = self.joint(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = joint.movedim(-4, -2).unbind(-4)  # (..., H, N, D / H) each
        rate = self.dropout.p if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=rate)
        x = x + self.dropout(self.attention_out(read.movedim(-3, -2).flatten(-2)))
        inner = self.out(self.dropout(F.gelu(self.hidden(self.norm(x)))))
        output: Tensor = x + self.dropout(inner)
        return output
